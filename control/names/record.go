package names

import (
	"net/netip"
	"slices"
	"strings"
)

// Record is a record as its provider holds it.
type Record struct {
	Name string // in lower case, without a final dot; *.x.test for a wildcard
	Type string // A, AAAA, CNAME or TXT
	Data string // of A and AAAA an address as netip writes it, of TXT the bare text
	TTL  int    // seconds
	// Weight is its share of answers, 1 to 100, where the provider weights them;
	// 0: it does not.
	Weight int
	// ID is what the provider knows it by; "": by its content.
	ID string
	// Odd says why it is no ordinary record that everybody gets, such as one for a
	// single network or one that is switched off; "": it is one.
	Odd string
}

// IsAddress reports whether r is an A or AAAA record.
func (r Record) IsAddress() bool { return r.Type == "A" || r.Type == "AAAA" }

// same reports whether r and o are the same record but for TTL, weight and ID.
func (r Record) same(o Record) bool { return r.Name == o.Name && r.Type == o.Type && r.Data == o.Data }

// typeOf returns the type of the record that an address has.
func typeOf(a netip.Addr) string {
	if a.Is4() {
		return "A"
	}
	return "AAAA"
}

// Marker returns the name of the TXT record that says whose name, in zone, is. It
// stands beside the name and not below it: a record below would hide the name
// from a wildcard that answers for it until it has records of its own. No two
// names have the same one: no host's label begins with an underscore.
func Marker(name, zone string) string {
	if name == zone {
		return "_sluice." + zone
	}
	if rest, ok := strings.CutPrefix(name, "*."); ok {
		return "_sluice_wildcard." + rest
	}
	return "_sluice-" + name
}

// markerHead is what the text of every marker begins with.
const markerHead = "heritage=sluice,cluster="

// MarkerText returns the text of the marker by which a cluster owns a name.
func MarkerText(cluster, name string) string { return markerHead + cluster + ",name=" + name }

// ownerOf returns the cluster that a marker's text names for name.
func ownerOf(text, name string) (cluster string, ok bool) {
	rest, ok := strings.CutPrefix(text, markerHead)
	if !ok {
		return "", false
	}
	cluster, of, _ := strings.Cut(rest, ",name=")
	return cluster, of == name && cluster != ""
}

// View is what was read of one name.
type View struct {
	Records []Record // of the name itself: A, AAAA, CNAME
	Markers []Record // TXT records of its Marker
}

// viewOf picks what belongs to a name from records that were read.
func viewOf(name, zone string, records []Record) View {
	var v View
	marker := Marker(name, zone)
	for _, r := range records {
		switch {
		case r.Name == name && (r.IsAddress() || r.Type == "CNAME"):
			v.Records = append(v.Records, r)
		case r.Name == marker && r.Type == "TXT":
			v.Markers = append(v.Markers, r)
		}
	}
	slices.SortFunc(v.Records, compareRecords)
	return v
}

func compareRecords(a, b Record) int {
	if c := strings.Compare(a.Type, b.Type); c != 0 {
		return c
	}
	x, errX := netip.ParseAddr(a.Data)
	y, errY := netip.ParseAddr(b.Data)
	if errX == nil && errY == nil {
		if c := x.Compare(y); c != 0 {
			return c
		}
	} else if c := strings.Compare(a.Data, b.Data); c != 0 {
		return c
	}
	return strings.Compare(a.ID, b.ID)
}

// owner says whose the name is: the cluster of a marker, "" without one. Of
// several markers that of ours counts.
func (v View) owner(name, ours string) string {
	found := ""
	for _, m := range v.Markers {
		if cluster, ok := ownerOf(m.Data, name); ok && (found == "" || cluster == ours) {
			found = cluster
		}
	}
	return found
}

// addresses returns the address records.
func (v View) addresses() []Record {
	var all []Record
	for _, r := range v.Records {
		if r.IsAddress() && r.Odd == "" {
			all = append(all, r)
		}
	}
	return all
}
