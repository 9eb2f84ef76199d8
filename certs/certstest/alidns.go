package certstest

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Alidns is a fake of alidns.aliyuncs.com, API version 2015-01-09, with one
// domain. It checks the ACS3-HMAC-SHA256 signature, its age and its nonce.
type Alidns struct {
	api
	Domain    string // x.test
	KeyID     string
	KeySecret string
	Token     string // of a temporary key (STS); empty: the key is a lasting one
	// LeastTTL is the shortest that the edition takes; 0: 600, that of the free one.
	LeastTTL int

	nonces map[string]bool
	nextID int
}

// NewAlidns starts a fake that ends with the test. Requests are named by their
// action, such as AddDomainRecord.
func NewAlidns(t testing.TB) *Alidns {
	t.Helper()
	f := &Alidns{Domain: "x.test", KeyID: "test-id", KeySecret: "test-secret", nonces: map[string]bool{}}
	f.start(t, func(r *http.Request) string { return r.Header.Get("X-Acs-Action") }, f.handle)
	return f
}

// aliError is how the API complains; the code decides, the message is for people.
func aliError(w http.ResponseWriter, status int, code, message string) {
	writeJSON(w, status, map[string]string{
		"RequestId": "6F4A0B3E", "HostId": "alidns.aliyuncs.com", "Code": code, "Message": message,
	})
}

func (f *Alidns) handle(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		aliError(w, http.StatusBadRequest, "BadRequest", err.Error())
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if status, code, message := f.authenticateLocked(r, body); code != "" {
		aliError(w, status, code, message)
		return
	}
	q, err := url.ParseQuery(string(body))
	if err != nil {
		aliError(w, http.StatusBadRequest, "BadRequest", err.Error())
		return
	}
	switch action := r.Header.Get("X-Acs-Action"); action {
	case "DescribeDomains":
		f.describeDomainsLocked(w, q)
	case "DescribeDomainRecords":
		f.describeRecordsLocked(w, q)
	case "DescribeDomainInfo", "DescribeSubDomainRecords", "UpdateDomainRecord", "SetDNSSLBStatus", "UpdateDNSSLBWeight":
		f.handleHostsLocked(w, action, q)
	case "AddDomainRecord":
		f.addLocked(w, q)
	case "DeleteDomainRecord":
		f.deleteLocked(w, q)
	default:
		aliError(w, http.StatusNotFound, "InvalidAction.NotFound", "Specified api is not found: "+action)
	}
}

func (f *Alidns) describeDomainsLocked(w http.ResponseWriter, q url.Values) {
	domains := []map[string]string{}
	if q.Get("KeyWord") == f.Domain {
		domains = append(domains, map[string]string{"DomainName": f.Domain, "VersionCode": "mianfei"})
	}
	writeJSON(w, http.StatusOK, map[string]any{"RequestId": "1", "Domains": map[string]any{"Domain": domains}})
}

func (f *Alidns) describeRecordsLocked(w http.ResponseWriter, q url.Values) {
	found := []map[string]any{}
	for _, rec := range f.records {
		if strings.Contains(rec.Name, q.Get("RRKeyWord")) && strings.Contains(rec.Data, q.Get("ValueKeyWord")) &&
			strings.Contains(rec.Type, q.Get("TypeKeyWord")) {
			found = append(found, map[string]any{
				"RR": rec.Name, "Type": rec.Type, "Value": rec.Data, "TTL": rec.TTL,
				"RecordId": rec.ID, "DomainName": f.Domain, "Status": "ENABLE", "Line": "default",
			})
		}
	}
	writeJSON(w, http.StatusOK, map[string]any{
		"RequestId": "1", "TotalCount": len(found), "PageNumber": 1, "PageSize": 20,
		"DomainRecords": map[string]any{"Record": found},
	})
}

func (f *Alidns) addLocked(w http.ResponseWriter, q url.Values) {
	rec := Record{Type: q.Get("Type"), Name: q.Get("RR"), Data: q.Get("Value")}
	rec.TTL, _ = strconv.Atoi(q.Get("TTL"))
	switch {
	case q.Get("DomainName") != f.Domain:
		aliError(w, http.StatusNotFound, "InvalidDomainName.NoExist", "The specified domain name does not exist.")
		return
	case rec.TTL < f.leastTTL():
		aliError(w, http.StatusBadRequest, "QuotaExceeded.TTL", "The TTL exceeds the range of the current edition.")
		return
	case slices.ContainsFunc(f.records, func(o Record) bool {
		return o.Type == rec.Type && o.Name == rec.Name && o.Data == rec.Data
	}):
		aliError(w, http.StatusBadRequest, "DomainRecordDuplicate", "The DNS record already exists.")
		return
	}
	f.nextID++
	rec.ID = fmt.Sprintf("90%06d", f.nextID)
	f.putLocked(rec, f.Domain)
	writeJSON(w, http.StatusOK, map[string]string{"RequestId": "1", "RecordId": rec.ID})
}

func (f *Alidns) deleteLocked(w http.ResponseWriter, q url.Values) {
	id := q.Get("RecordId")
	i := slices.IndexFunc(f.records, func(o Record) bool { return o.ID == id })
	if i < 0 {
		aliError(w, http.StatusBadRequest, "DomainRecordNotBelongToUser", "The DNS record does not exist in your account.")
		return
	}
	f.dropLocked(i, f.Domain)
	writeJSON(w, http.StatusOK, map[string]string{"RequestId": "1", "RecordId": id})
}

// authenticateLocked returns what is wrong with the request's signature.
func (f *Alidns) authenticateLocked(r *http.Request, body []byte) (status int, code, message string) {
	scheme, params, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	auth := map[string]string{}
	for part := range strings.SplitSeq(params, ",") {
		k, v, _ := strings.Cut(part, "=")
		auth[k] = v
	}
	date, err := time.Parse(time.RFC3339, r.Header.Get("X-Acs-Date"))
	nonce := r.Header.Get("X-Acs-Signature-Nonce")
	switch {
	case scheme != "ACS3-HMAC-SHA256" || r.Header.Get("X-Acs-Version") != "2015-01-09":
		return http.StatusBadRequest, "InvalidProtocol", "want ACS3-HMAC-SHA256 and version 2015-01-09"
	case auth["Credential"] != f.KeyID:
		return http.StatusNotFound, "InvalidAccessKeyId.NotFound", "Specified access key is not found."
	case r.Header.Get("X-Acs-Security-Token") != f.Token:
		return http.StatusBadRequest, "InvalidSecurityToken.Expired", "Specified SecurityToken is expired."
	case err != nil || time.Since(date).Abs() > clockSkew:
		return http.StatusBadRequest, "InvalidTimeStamp.Expired", "Specified time stamp or date value is expired."
	case nonce == "" || f.nonces[nonce]:
		return http.StatusBadRequest, "SignatureNonceUsed", "Specified signature nonce was used already."
	case !hmac.Equal([]byte(auth["Signature"]), []byte(f.sign(r, auth["SignedHeaders"], body))):
		return http.StatusBadRequest, "SignatureDoesNotMatch", "Specified signature is not matched with our calculation."
	}
	f.nonces[nonce] = true
	return 0, "", ""
}

// sign computes the V3 signature over the headers named in signed.
func (f *Alidns) sign(r *http.Request, signed string, body []byte) string {
	names := strings.Split(signed, ";")
	for _, must := range []string{"host", "x-acs-action", "x-acs-content-sha256", "x-acs-date", "x-acs-signature-nonce", "x-acs-version"} {
		if !slices.Contains(names, must) {
			return "header not signed: " + must
		}
	}
	var headers strings.Builder
	for _, name := range names {
		value := r.Header.Get(name)
		if name == "host" {
			value = r.Host
		}
		fmt.Fprintf(&headers, "%s:%s\n", name, strings.TrimSpace(value))
	}
	digest := sha256.Sum256(body)
	canonical := strings.Join([]string{r.Method, r.URL.Path, r.URL.RawQuery, headers.String(), signed, hex.EncodeToString(digest[:])}, "\n")
	hashed := sha256.Sum256([]byte(canonical))
	mac := hmac.New(sha256.New, []byte(f.KeySecret))
	fmt.Fprintf(mac, "ACS3-HMAC-SHA256\n%x", hashed)
	return hex.EncodeToString(mac.Sum(nil))
}
