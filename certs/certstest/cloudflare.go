package certstest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// Cloudflare is a fake of api.cloudflare.com, version 4, with one zone. It
// checks the bearer token.
type Cloudflare struct {
	api
	Domain string // x.test
	Token  string

	nextID int
}

// cfZoneID is the id of the only zone.
const cfZoneID = "023e105f4ecef8ad9ca31a8372d0c353"

// NewCloudflare starts a fake that ends with the test. Requests are named
// "METHOD what": GET zones, GET dns_records, POST dns_records, PATCH dns_records, DELETE dns_records.
func NewCloudflare(t testing.TB) *Cloudflare {
	t.Helper()
	f := &Cloudflare{Domain: "x.test", Token: "cf-test-token"}
	f.start(t, func(r *http.Request) string {
		what := "zones"
		if strings.Contains(r.URL.Path, "/dns_records") {
			what = "dns_records"
		}
		return r.Method + " " + what
	}, f.handle)
	return f
}

// cfRecord is a record as the API writes it.
type cfRecord struct {
	ID      string `json:"id"`
	Type    string `json:"type"`
	Name    string `json:"name"`
	Content string `json:"content"`
	TTL     int    `json:"ttl"`
	Proxied bool   `json:"proxied"`
}

func (f *Cloudflare) wire(rec Record) cfRecord {
	return cfRecord{ID: rec.ID, Type: rec.Type, Name: rec.Name + "." + f.Domain, Content: rec.Data, TTL: rec.TTL, Proxied: rec.Proxied}
}

func cfResult(w http.ResponseWriter, result any) {
	writeJSON(w, http.StatusOK, map[string]any{
		"success": true, "errors": []any{}, "messages": []any{}, "result": result,
		"result_info": map[string]int{"page": 1, "per_page": 100, "count": 1, "total_count": 1},
	})
}

func cfError(w http.ResponseWriter, status, code int, message string) {
	writeJSON(w, status, map[string]any{
		"success": false, "messages": []any{}, "result": nil,
		"errors": []map[string]any{{"code": code, "message": message}},
	})
}

func (f *Cloudflare) handle(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Authorization") != "Bearer "+f.Token {
		cfError(w, http.StatusForbidden, 10000, "Authentication error")
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	path, ok := strings.CutPrefix(r.URL.Path, "/client/v4/zones")
	records := "/" + cfZoneID + "/dns_records"
	switch {
	case ok && r.Method == http.MethodGet && path == "":
		f.zones(w, r)
	case ok && r.Method == http.MethodGet && path == records:
		f.listLocked(w, r)
	case ok && r.Method == http.MethodPost && path == records:
		f.addLocked(w, r)
	case ok && r.Method == http.MethodPatch && strings.HasPrefix(path, records+"/"):
		f.patchLocked(w, r, strings.TrimPrefix(path, records+"/"))
	case ok && r.Method == http.MethodDelete && strings.HasPrefix(path, records+"/"):
		f.deleteLocked(w, strings.TrimPrefix(path, records+"/"))
	default:
		cfError(w, http.StatusNotFound, 7003, "Could not route to "+r.URL.Path)
	}
}

func (f *Cloudflare) zones(w http.ResponseWriter, r *http.Request) {
	zones := []map[string]string{}
	if strings.TrimSuffix(r.URL.Query().Get("name"), ".") == f.Domain {
		zones = append(zones, map[string]string{"id": cfZoneID, "name": f.Domain, "status": "active"})
	}
	cfResult(w, zones)
}

func (f *Cloudflare) listLocked(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	found := []cfRecord{}
	for _, rec := range f.records {
		out := f.wire(rec)
		if (out.Type == q.Get("type") || q.Get("type") == "") && out.Name == strings.TrimSuffix(q.Get("name"), ".") &&
			strings.Contains(out.Content, q.Get("content.contains")) {
			found = append(found, out)
		}
	}
	cfResult(w, found)
}

func (f *Cloudflare) addLocked(w http.ResponseWriter, r *http.Request) {
	var in cfRecord
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		cfError(w, http.StatusBadRequest, 9207, "Request body is invalid: "+err.Error())
		return
	}
	// Names may be given whole.
	rec := Record{Type: in.Type, Name: strings.TrimSuffix(in.Name, "."+f.Domain), Data: in.Content, TTL: in.TTL}
	if slices.ContainsFunc(f.records, func(o Record) bool {
		return o.Type == rec.Type && o.Name == rec.Name && o.Data == rec.Data
	}) {
		cfError(w, http.StatusBadRequest, 81058, "An identical record already exists.")
		return
	}
	f.nextID++
	rec.ID = fmt.Sprintf("372e67954025e0ba6aaa6d586b9e%04d", f.nextID)
	f.putLocked(rec, f.Domain)
	cfResult(w, f.wire(rec))
}

func (f *Cloudflare) patchLocked(w http.ResponseWriter, r *http.Request, id string) {
	var in cfRecord
	i := slices.IndexFunc(f.records, func(o Record) bool { return o.ID == id })
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil || i < 0 {
		cfError(w, http.StatusNotFound, 81044, "Record does not exist.")
		return
	}
	if in.TTL != 0 {
		f.records[i].TTL = in.TTL
	}
	cfResult(w, f.wire(f.records[i]))
}

func (f *Cloudflare) deleteLocked(w http.ResponseWriter, id string) {
	i := slices.IndexFunc(f.records, func(o Record) bool { return o.ID == id })
	if i < 0 {
		cfError(w, http.StatusNotFound, 81044, "Record does not exist.")
		return
	}
	rec := f.records[i]
	f.dropLocked(i, f.Domain)
	cfResult(w, f.wire(rec))
}
