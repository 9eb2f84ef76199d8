package certstest

import (
	"cmp"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

func (f *Alidns) leastTTL() int { return cmp.Or(f.LeastTTL, 600) }

// handleHostsLocked answers what records that are kept true take besides.
func (f *Alidns) handleHostsLocked(w http.ResponseWriter, action string, q url.Values) {
	if name := q.Get("DomainName"); name != "" && name != f.Domain {
		aliError(w, http.StatusNotFound, "InvalidDomainName.NoExist", "The specified domain name does not exist.")
		return
	}
	switch action {
	case "DescribeDomainInfo":
		writeJSON(w, http.StatusOK, map[string]any{"RequestId": "1", "DomainName": f.Domain, "MinTtl": f.leastTTL()})
	case "DescribeSubDomainRecords":
		f.subDomainLocked(w, q)
	case "SetDNSSLBStatus":
		f.setWeightedLocked(w, q)
	default:
		f.updateLocked(w, action, q)
	}
}

// subDomainLocked lists the records of one name, in pages.
func (f *Alidns) subDomainLocked(w http.ResponseWriter, q url.Values) {
	found := []map[string]any{}
	for _, rec := range f.records {
		if !strings.EqualFold(rec.Name+"."+f.Domain, q.Get("SubDomain")) {
			continue
		}
		one := map[string]any{
			"RR": rec.Name, "Type": rec.Type, "Value": rec.Data, "TTL": rec.TTL, "RecordId": rec.ID, "DomainName": f.Domain,
			"Status": cmp.Or(rec.Status, "ENABLE"), "Line": cmp.Or(rec.Line, "default"),
		}
		if rec.Weight > 0 {
			one["Weight"] = rec.Weight
		}
		found = append(found, one)
	}
	page, _ := strconv.Atoi(q.Get("PageNumber"))
	size, _ := strconv.Atoi(q.Get("PageSize"))
	page, size = max(page, 1), cmp.Or(size, 20)
	from := min((page-1)*size, len(found))
	writeJSON(w, http.StatusOK, map[string]any{
		"RequestId": "1", "TotalCount": len(found), "PageNumber": page, "PageSize": size,
		"DomainRecords": map[string]any{"Record": found[from:min(from+size, len(found))]},
	})
}

// setWeightedLocked has the records of one type of a name weighted, each with 1.
func (f *Alidns) setWeightedLocked(w http.ResponseWriter, q url.Values) {
	var of []int
	for i, rec := range f.records {
		if strings.EqualFold(rec.Name+"."+f.Domain, q.Get("SubDomain")) && rec.Type == q.Get("Type") {
			of = append(of, i)
		}
	}
	if len(of) < 2 {
		aliError(w, http.StatusBadRequest, "DisableDNSSLB", "The subdomain has too few records to be weighted.")
		return
	}
	for _, i := range of {
		f.records[i].Weight = max(f.records[i].Weight, 1)
	}
	writeJSON(w, http.StatusOK, map[string]any{"RequestId": "1", "Open": true, "RecordCount": len(of)})
}

// updateLocked changes one record.
func (f *Alidns) updateLocked(w http.ResponseWriter, action string, q url.Values) {
	i := slices.IndexFunc(f.records, func(o Record) bool { return o.ID == q.Get("RecordId") })
	if i < 0 {
		aliError(w, http.StatusBadRequest, "DomainRecordNotBelongToUser", "The DNS record does not exist in your account.")
		return
	}
	rec := &f.records[i]
	if action == "UpdateDNSSLBWeight" {
		weight, err := strconv.Atoi(q.Get("Weight"))
		if err != nil || weight < 1 || weight > 100 || rec.Weight == 0 {
			aliError(w, http.StatusBadRequest, "InvalidWeight", "The weight is invalid, or the name is not weighted.")
			return
		}
		rec.Weight = weight
		writeJSON(w, http.StatusOK, map[string]any{"RequestId": "1", "RecordId": rec.ID, "Weight": weight})
		return
	}
	ttl, _ := strconv.Atoi(q.Get("TTL"))
	switch {
	case ttl < f.leastTTL():
		aliError(w, http.StatusBadRequest, "QuotaExceeded.TTL", "The TTL exceeds the range of the current edition.")
		return
	case rec.Data == q.Get("Value") && rec.TTL == ttl && rec.Name == q.Get("RR"):
		aliError(w, http.StatusBadRequest, "DomainRecordDuplicate", "The DNS record already exists.")
		return
	}
	rec.Name, rec.Data, rec.TTL = q.Get("RR"), q.Get("Value"), ttl
	writeJSON(w, http.StatusOK, map[string]any{"RequestId": "1", "RecordId": rec.ID})
}
