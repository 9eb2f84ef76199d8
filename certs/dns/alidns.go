package dns

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/libdns/alidns"
	"github.com/libdns/libdns"
)

var _ = register(kind{
	name: "alidns",
	fields: []field{
		{name: "access_key_id", right: "the id of an Aliyun access key whose RAM user may manage the zone"},
		{name: "access_key_secret", right: "the secret that belongs to access_key_id"},
		{name: "region", right: "an Aliyun region such as cn-hangzhou", optional: true},
		{name: "security_token", right: "the token that belongs to a temporary (STS) access key", optional: true},
	},
	build: newAlidns,
})

// newAlidns builds a client of Aliyun's DNS. libdns/alidns v1.0.7 needs care:
//
//   - A Provider replaces a field of itself in every call, so it must not be
//     shared by two goroutines: every call gets one of its own.
//   - It looks the zone up without the caller's context and through
//     http.DefaultClient: calls run detached, and aliTransport ends them.
//   - Its errors are plain text without the API's error code, by which the API
//     means them to be told apart: aliTransport brings it across.
//
// The API throttles per account, so calls do not overlap.
func newAlidns(set Settings) (driver, error) {
	cred := alidns.CredentialInfo{
		AccessKeyID:     string(set["access_key_id"]),
		AccessKeySecret: string(set["access_key_secret"]),
		RegionID:        string(set["region"]),
		SecurityToken:   string(set["security_token"]),
	}
	hookAlidns()
	return driver{
		open:       func() records { return aliRecords{&alidns.Provider{CredentialInfo: cred}} },
		classify:   classifyAlidns,
		explain:    explainAlidns,
		oneAtATime: true,
		detached:   true,
		hosts:      &aliHosts{id: cred.AccessKeyID, secret: cred.AccessKeySecret, token: cred.SecurityToken, client: http.DefaultClient},
	}, nil
}

// aliRecords gives errors of the library their type back.
type aliRecords struct{ p *alidns.Provider }

func (a aliRecords) AppendRecords(ctx context.Context, zone string, recs []libdns.Record) ([]libdns.Record, error) {
	got, err := a.p.AppendRecords(ctx, zone, recs)
	for _, rec := range got {
		if ali, ok := rec.(alidns.DomainRecord); ok && ali.ID == "" && err == nil {
			return got, errors.New("the API's reply has no RecordId")
		}
	}
	return got, aliErrorOf(err)
}

func (a aliRecords) DeleteRecords(ctx context.Context, zone string, recs []libdns.Record) ([]libdns.Record, error) {
	got, err := a.p.DeleteRecords(ctx, zone, recs)
	return got, aliErrorOf(err)
}

// aliError is a complaint of the API.
type aliError struct {
	status        int
	code, message string
}

func (e *aliError) Error() string {
	return fmt.Sprintf("HTTP %d %s: %s", e.status, e.code, e.message)
}

var (
	// aliSays is what the library makes of a reply that aliTransport marked.
	aliSays = regexp.MustCompile(`get error status: HTTP (\d+): \[([^\]]*)\] ?(.*)$`)
	// aliPreamble is what the library puts before every error.
	aliPreamble = regexp.MustCompile(`^there is something error when '\w+': (caused at record named '[^']*': )?(caused with: )?(Post "https://` + aliHost + `/": )?`)
)

// aliErrorOf finds the API's own words in an error of the library.
func aliErrorOf(err error) error {
	if err == nil {
		return nil
	}
	text := aliPreamble.ReplaceAllString(err.Error(), "")
	said := aliSays.FindStringSubmatch(text)
	if said == nil {
		return errors.New(text)
	}
	status, _ := strconv.Atoi(said[1]) // digits, by the expression
	return &aliError{status: status, code: said[2], message: said[3]}
}

// classifyAlidns goes by the API's codes. What is no answer of the API never
// reached it or came back as something else, such as a gateway's page, and may pass.
func classifyAlidns(err error) class {
	if err == nil {
		return classOK
	}
	if ae, ok := errors.AsType[*aliError](err); ok {
		return ae.class()
	}
	switch text := err.Error(); {
	case contains(text, "the Record Name of the domain not found"):
		return classMissing
	case contains(text, "HTTP 429 "):
		return classTransient
	case contains(text, "HTTP 4", "cannot found specified zone", "empty AccessKey"):
		return classRefused
	}
	return classTransient
}

// aliPassing are codes of failures that pass, besides those that begin with Throttling.
var aliPassing = []string{"ServiceUnavailable", "InternalError", "SystemBusy", "LastOperationNotFinished", "SignatureNonceUsed"}

func (e *aliError) class() class {
	switch {
	case e.code == "DomainRecordDuplicate":
		return classExists
	case e.code == "DomainRecordNotBelongToUser":
		return classMissing
	case strings.HasPrefix(e.code, "Throttling"), slices.Contains(aliPassing, e.code),
		e.status == 429, e.status >= 500:
		return classTransient
	}
	return classRefused
}

// aliHints say what to change, by the beginning of the code.
var aliHints = []struct{ code, hint string }{
	{"InvalidAccessKeyId", "access_key_id is not a key that Aliyun knows, or it is disabled"},
	{"SignatureDoesNotMatch", "access_key_secret does not belong to access_key_id"},
	{"IncompleteSignature", "access_key_secret does not belong to access_key_id"},
	{"InvalidSecurityToken", "security_token has expired or belongs to another key: get a new temporary key, or use one that lasts"},
	{"InvalidTimeStamp", "the clock here is wrong"},
	{"Forbidden", aliPolicy},
	{"NoPermission", aliPolicy},
	{"QuotaExceeded", "the zone or the account is at its limit: delete records, or have the limit raised"},
	{"DomainRecordConflict", "another record of that name, such as a CNAME, is in the way"},
}

const aliPolicy = "the RAM user needs AliyunDNSFullAccess, or the actions alidns:DescribeDomains, DescribeDomainRecords, AddDomainRecord and DeleteDomainRecord on the zone; for names that are kept true besides DescribeSubDomainRecords, DescribeDomainInfo, UpdateDomainRecord, SetDNSSLBStatus and UpdateDNSSLBWeight"

func explainAlidns(err error, zone string) string {
	noZone := fmt.Sprintf("the account of access_key_id has no domain %s", strings.TrimSuffix(zone, "."))
	ae, ok := errors.AsType[*aliError](err)
	switch {
	case !ok && contains(err.Error(), "cannot found specified zone"):
		return noZone
	case !ok:
		return ""
	case ae.code == "InvalidDomainName.NoExist", ae.code == "IncorrectDomainUser":
		return noZone
	}
	for _, h := range aliHints {
		if strings.HasPrefix(ae.code, h.code) {
			return h.hint
		}
	}
	return ""
}
