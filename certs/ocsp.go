package certs

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"time"

	"golang.org/x/crypto/ocsp"
)

// tlsFeature is the extension in which a certificate says what a server that
// uses it does in every handshake (RFC 7633).
var tlsFeature = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 24}

// statusRequest is the TLS extension by which a client has an OCSP response
// stapled (RFC 6066 section 8).
const statusRequest = 5

// mustStaple reports whether a certificate asks for a stapled OCSP response.
func mustStaple(leaf *x509.Certificate) bool { return wantsStaple(leaf.Extensions) }

// wantsStaple reports whether one with these extensions does.
func wantsStaple(all []pkix.Extension) bool {
	for _, e := range all {
		if !e.Id.Equal(tlsFeature) {
			continue
		}
		var features []int
		if rest, err := asn1.Unmarshal(e.Value, &features); err == nil && len(rest) == 0 {
			return slices.Contains(features, statusRequest)
		}
	}
	return false
}

// issuerOf returns the certificate of who signed cert, which is the next in its
// chain.
func issuerOf(cert *tls.Certificate) (*x509.Certificate, error) {
	if len(cert.Certificate) < 2 {
		return nil, errors.New("the stored chain ends with the certificate itself: OCSP needs that of its authority behind it")
	}
	issuer, err := x509.ParseCertificate(cert.Certificate[1])
	if err != nil {
		return nil, fmt.Errorf("the second certificate of the stored chain: %w", err)
	}
	if err := cert.Leaf.CheckSignatureFrom(issuer); err != nil {
		return nil, fmt.Errorf("the second certificate of the stored chain is not that of the authority: %w", err)
	}
	return issuer, nil
}

// ocspSkew is how far the clock of a responder may be ahead of ours.
const ocspSkew = 5 * time.Minute

// verifyOCSP parses an OCSP response (RFC 6960) and says what keeps it from being
// one that leaf can be served with, or that says why leaf should not be served:
// its signature is that of issuer or of a responder that issuer has named for
// this (section 4.2.2.2), it is about leaf, of now, and says good or revoked.
func verifyOCSP(der []byte, leaf, issuer *x509.Certificate, now time.Time) (*ocsp.Response, error) {
	r, err := ocsp.ParseResponseForCert(der, leaf, issuer)
	if refused, ok := errors.AsType[ocsp.ResponseError](err); ok {
		return nil, fmt.Errorf("the OCSP responder answers %v", refused.Status)
	}
	if err != nil {
		return nil, fmt.Errorf("the OCSP response is not usable: %w", err)
	}
	// Who signed it has been looked at by then, but not whether that one may.
	if by := r.Certificate; by != nil && !by.Equal(issuer) {
		switch {
		case !slices.Contains(by.ExtKeyUsage, x509.ExtKeyUsageOCSPSigning):
			return nil, fmt.Errorf("the OCSP response is signed by %q, which its authority has not named for that", by.Subject)
		case now.Before(by.NotBefore.Add(-ocspSkew)) || now.After(by.NotAfter):
			return nil, fmt.Errorf("the OCSP response is signed by %q, whose certificate has expired or does not hold yet", by.Subject)
		}
	}
	switch {
	case r.ThisUpdate.After(now.Add(ocspSkew)):
		return nil, fmt.Errorf("the OCSP response is of %s, which is in the future: is this node's clock right?", r.ThisUpdate.UTC().Format(time.RFC3339))
	case r.NextUpdate.IsZero():
		return nil, errors.New("the OCSP response does not say until when it holds, and so cannot be kept")
	case !now.Before(r.NextUpdate):
		return nil, fmt.Errorf("the OCSP response has expired at %s", r.NextUpdate.UTC().Format(time.RFC3339))
	case r.Status != ocsp.Good && r.Status != ocsp.Revoked:
		return nil, errors.New("the OCSP responder says that it does not know the certificate")
	}
	return r, nil
}

const (
	ocspTimeout    = 10 * time.Second // of one request
	ocspResponders = 3                // of one certificate that are asked
	largestOCSP    = 64 << 10         // bytes; usual are 500 to 2000
)

// newOCSPClient returns a client that keeps no connection: there are hours
// between two requests. It goes by the proxy of the environment, as requests to
// authorities do.
func newOCSPClient() *http.Client {
	return &http.Client{Timeout: ocspTimeout, Transport: &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: ocspTimeout}).DialContext,
		TLSHandshakeTimeout: ocspTimeout,
		DisableKeepAlives:   true,
	}}
}

// fetchOCSP asks the responders that leaf names, one after the other, and returns
// the first response that is good for something.
func fetchOCSP(ctx context.Context, client *http.Client, leaf, issuer *x509.Certificate) (*ocsp.Response, error) {
	if len(leaf.OCSPServer) == 0 {
		return nil, errors.New("it names no OCSP responder to ask")
	}
	question, err := ocsp.CreateRequest(leaf, issuer, nil)
	if err != nil {
		return nil, fmt.Errorf("make an OCSP request: %w", err)
	}
	var errs []error
	for _, server := range leaf.OCSPServer[:min(len(leaf.OCSPServer), ocspResponders)] {
		der, err := askOCSP(ctx, client, server, question)
		if err == nil {
			var r *ocsp.Response
			if r, err = verifyOCSP(der, leaf, issuer, time.Now()); err == nil {
				return r, nil
			}
			err = fmt.Errorf("%s: %w", server, err)
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// askOCSP posts a request (RFC 6960 appendix A.1).
func askOCSP(ctx context.Context, client *http.Client, server string, question []byte) ([]byte, error) {
	u, err := url.Parse(server)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("the certificate names %q as its OCSP responder: want an http URL", server)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, server, bytes.NewReader(question))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/ocsp-request")
	req.Header.Set("Accept", "application/ocsp-response")
	resp, err := client.Do(req)
	if err != nil {
		return nil, err // it names the URL
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: the OCSP responder answers %s", server, resp.Status)
	}
	der, err := io.ReadAll(io.LimitReader(resp.Body, largestOCSP+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: read the OCSP response: %w", server, err)
	case len(der) > largestOCSP:
		return nil, fmt.Errorf("%s: the OCSP response has more than %d bytes", server, largestOCSP)
	}
	return der, nil
}
