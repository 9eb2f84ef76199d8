package http

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/remotegpu/sluice/proxy/clienttls"
	"github.com/remotegpu/sluice/proxy/http/h1"
	"github.com/remotegpu/sluice/router"
)

// tlsServer returns how TLS is spoken with clients that are offered protocols.
// Every connection remembers the certificate it was given, and what it was asked
// for itself. It is found in the context of the handshake.
func tlsServer(cfg *Config, protocols ...string) *clienttls.Server {
	base := cfg.TLS.Clone()
	base.NextProtos = protocols
	base.DynamicRecordSizingDisabled = true // a record for each write, not three
	base.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		cert, err := cfg.TLS.GetCertificate(hello)
		if conn := connFrom(hello.Context()); conn != nil && err == nil {
			conn.certificate.Store(cert)
		}
		return cert, err
	}
	return cfg.Terms.Server(base, clienttls.WithAsked(func(ctx context.Context, asked *clienttls.Auth, serverName string) {
		if conn := connFrom(ctx); conn != nil {
			conn.askedName = serverName
			conn.asked.Store(asked)
		}
	}))
}

// handshake secures conn's socket and learns protocol and server name.
func (s *Server) handshake(conn *conn) (*tls.Conn, error) {
	if s.tcpTLS == nil {
		return nil, errors.New("the server has no TLS configuration")
	}
	c := tls.Server(conn.socket, s.tcpTLS.Config())
	conn.socket.SetDeadline(time.Now().Add(s.cfg.Limits.Handshake))
	// The deadline bounds the handshake; a context that can end would cost a
	// goroutine.
	if err := c.HandshakeContext(withConn(context.Background(), conn)); err != nil {
		if wrong, is := errors.AsType[tls.RecordHeaderError](err); is && wrong.Conn != nil && isClearHTTP(wrong.RecordHeader) {
			conn.answerClear()
		}
		conn.refused(err)
		return nil, err
	}
	conn.socket.SetDeadline(time.Time{})
	state := c.ConnectionState()
	if state.NegotiatedProtocol == "h2" {
		conn.proto = protoH2
	}
	conn.setServerName(state.ServerName)
	conn.shown = func() []*x509.Certificate { return state.PeerCertificates }
	return c, nil
}

// refused tells whom it concerns of a handshake that failed.
func (c *conn) refused(err error) {
	if asked := c.asked.Load(); asked != nil { // which askedName was written before
		c.server.cfg.Terms.Refused(clienttls.Refusal{Asked: asked, Client: c.info.Client, ServerName: c.askedName, Listener: c.listener(), Err: err})
	}
}

// isClearHTTP reports whether a connection that is to begin with a record of TLS
// begins with the line of a request instead.
func isClearHTTP(begin [5]byte) bool {
	switch string(begin[:]) {
	case "GET /", "HEAD ", "POST ", "PUT /", "PATCH", "DELET", "OPTIO", "TRACE", "CONNE":
		return true
	}
	return false
}

// answerClear tells a client that asks in clear text what is wrong.
func (c *conn) answerClear() {
	const text = "this port speaks HTTPS: the address has to begin with https://\n"
	b := h1.AppendStatusLine(nil, 400, "Bad Request")
	b = append(b, "Content-Type: text/plain; charset=utf-8\r\nCache-Control: no-store\r\nConnection: close\r\n"...)
	b = h1.AppendLength(b, int64(len(text)))
	b = append(append(b, "\r\n"...), text...)
	c.socket.linger.Store(lingerNoBody)
	if _, err := c.socket.Write(b); err == nil {
		c.socket.Close()
	}
}

// setServerName keeps the server name in the form that hosts are compared in.
func (c *conn) setServerName(name string) {
	if normal, ok := router.NormalizeHost(name); ok {
		c.serverName = normal
	}
}

// covers reports whether host may be asked for on the connection (RFC 9110
// section 7.4): it is the name that the client opened the connection for, or
// one that the certificate it was shown is valid for. A client that sent no
// name asks for what it likes.
func (c *conn) covers(host string) bool {
	if !c.info.TLS || c.serverName == "" || c.serverName == host {
		return true
	}
	leaf, err := c.leaf()
	return err == nil && leaf.VerifyHostname(host) == nil
}

// leaf returns the certificate that the client was shown. A resumed connection
// was shown none; then it is the one that would be shown now.
func (c *conn) leaf() (*x509.Certificate, error) {
	cert := c.certificate.Load()
	if cert == nil {
		var err error
		if cert, err = c.server.cfg.TLS.GetCertificate(resumedHello(c.serverName)); err != nil {
			return nil, fmt.Errorf("find the certificate of a resumed connection: %w", err)
		}
		c.certificate.Store(cert)
	}
	if cert.Leaf != nil {
		return cert.Leaf, nil
	}
	if len(cert.Certificate) == 0 {
		return nil, errors.New("the certificate is empty")
	}
	return x509.ParseCertificate(cert.Certificate[0])
}

// resumedHello is a hello that any certificate suits.
func resumedHello(serverName string) *tls.ClientHelloInfo {
	return &tls.ClientHelloInfo{
		ServerName:        serverName,
		SupportedVersions: []uint16{tls.VersionTLS13, tls.VersionTLS12},
		CipherSuites:      []uint16{tls.TLS_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256},
		SupportedCurves:   []tls.CurveID{tls.X25519, tls.CurveP256, tls.CurveP384},
		SupportedPoints:   []uint8{0},
		SignatureSchemes: []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256, tls.ECDSAWithP384AndSHA384, tls.PSSWithSHA256,
			tls.PSSWithSHA384, tls.PSSWithSHA512, tls.Ed25519, tls.PKCS1WithSHA256, tls.PKCS1WithSHA384, tls.PKCS1WithSHA512},
	}
}
