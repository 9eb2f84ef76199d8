package dns

import (
	"fmt"
	"strings"

	"github.com/libdns/alidns"
)

// newAlidns builds a client of Aliyun's DNS. libdns/alidns v1.0.7 needs care:
//
//   - A Provider replaces a field of itself in every call, so it must not be
//     shared by two goroutines: every call gets one of its own.
//   - It looks the zone up without the caller's context and through
//     http.DefaultClient, which has no limit: calls run detached.
//   - Its errors are plain text without the API's error code.
//
// The API throttles per account, so calls do not overlap.
func newAlidns(cfg Config) (driver, error) {
	cred := alidns.CredentialInfo{
		AccessKeyID:     cfg.AccessKeyID,
		AccessKeySecret: string(cfg.AccessKeySecret),
		RegionID:        cfg.Region,
		SecurityToken:   string(cfg.SecurityToken),
	}
	return driver{
		open:       func() records { return &alidns.Provider{CredentialInfo: cred} },
		classify:   classifyAlidns,
		explain:    explainAlidns,
		oneAtATime: true,
		detached:   true,
	}, nil
}

// classifyAlidns goes by the text of the API's messages, which is all that the
// library keeps. What is not an HTTP error never reached the API or came back
// as something else than JSON (a gateway's error page), and may pass.
func classifyAlidns(err error) class {
	if err == nil {
		return classOK
	}
	text := err.Error()
	switch {
	case contains(text, "The DNS record already exists"): // DomainRecordDuplicate
		return classExists
	case contains(text, "The DNS record does not exist", // DomainRecordNotBelongToUser
		"the Record Name of the domain not found"):
		return classMissing
	case contains(text, "flow control", "request throttling", "HTTP 429", "HTTP 5"):
		return classTransient
	case contains(text, "HTTP 4", "cannot found specified zone", "empty AccessKey"):
		return classRefused
	}
	return classTransient
}

func explainAlidns(err error, zone string) string {
	if contains(err.Error(), "cannot found specified zone") {
		return fmt.Sprintf("the account of access_key_id has no domain %s", strings.TrimSuffix(zone, "."))
	}
	if contains(err.Error(), "invalid character '<'") {
		return "the reply was a web page, not JSON"
	}
	return ""
}
