package api

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"strings"

	"github.com/remotegpu/sluice/control/wire"
)

// refusal is an error for the client, with the status that it is answered with.
type refusal struct {
	status int
	error
}

func refuse(status int, format string, args ...any) error {
	return refusal{status, fmt.Errorf(format, args...)}
}

// answering turns a handler that returns its error into a plain one. Errors are
// answered as {"error": "..."}.
func answering(handle func(http.ResponseWriter, *http.Request) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		err := handle(w, r)
		if err == nil {
			return
		}
		status := http.StatusInternalServerError
		var known refusal
		if errors.As(err, &known) {
			status = known.status
		}
		writeJSON(w, status, map[string]string{"error": err.Error()})
	})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v) // an error here means that the client is gone
}

// writeLines sends values as JSON lines while it gets them, so that no list is
// ever held as text.
func writeLines[T any](w http.ResponseWriter, values iter.Seq[T]) {
	w.Header().Set("Content-Type", "application/x-ndjson")
	out := bufio.NewWriterSize(w, 32<<10)
	enc := json.NewEncoder(out)
	for v := range values {
		if enc.Encode(v) != nil {
			return // the client is gone
		}
	}
	out.Flush()
}

// picked gives the values that match picks.
func picked[T any](values iter.Seq[T], match func(T) bool) iter.Seq[T] {
	return func(yield func(T) bool) {
		for v := range values {
			if match(v) && !yield(v) {
				return
			}
		}
	}
}

// UnseenHeader is the field of an answer of GET /flows that says which flows there
// are besides, and why they are not listed.
const UnseenHeader = "Sluice-Unseen"

// listFlows answers GET /flows.
func (s *Server) listFlows(w http.ResponseWriter, r *http.Request) error {
	f, err := parseFilter(r.URL.Query(), flowFilters)
	if err != nil {
		return refusal{http.StatusBadRequest, err}
	}
	flows, unseen := s.live.Flows()
	if unseen != "" {
		w.Header().Set(UnseenHeader, unseen)
	}
	writeLines(w, picked(flows, f.Match))
	return nil
}

// cutFlows answers DELETE /flows.
func (s *Server) cutFlows(w http.ResponseWriter, r *http.Request) error {
	query := r.URL.Query()
	said, all := query["all"]
	query.Del("all")
	f, err := parseFilter(query, flowFilters)
	switch {
	case all && (len(said) != 1 || said[0] != "true"):
		return refuse(http.StatusBadRequest, "all: write true or leave it out")
	case err != nil:
		return refusal{http.StatusBadRequest, err}
	case f == (Filter{}) && !all:
		return refuse(http.StatusBadRequest, "say which flows: by one of %s, or all=true", strings.Join(flowFilters, ", "))
	case f != (Filter{}) && all:
		return refuse(http.StatusBadRequest, "all=true goes with nothing else; leave it or the filter out")
	}
	n, unseen := s.live.Cut(f.Match)
	s.log.Info("cut flows, as asked on the admin address", "flows", n, "filter", f.Query().Encode(), "by", r.RemoteAddr)
	writeJSON(w, http.StatusOK, wire.Cut{Cut: n, Unseen: unseen})
	return nil
}

// listMappings answers GET /mappings.
func (s *Server) listMappings(w http.ResponseWriter, r *http.Request) error {
	f, err := parseFilter(r.URL.Query(), mappingFilters)
	if err != nil {
		return refusal{http.StatusBadRequest, err}
	}
	writeLines(w, picked(s.live.Mappings(), f.MatchMapping))
	return nil
}

// mappingMetrics are the series of GET /metrics/mappings.
var mappingMetrics = []struct {
	name, kind, help, labels string
	value                    func(*Mapping) int64
}{
	{"flows_active", "gauge", "Live flows of a mapping.", "", func(m *Mapping) int64 { return int64(m.Live) }},
	{"flows_started_total", "counter", "Flows of a mapping that were let in.", "", func(m *Mapping) int64 { return m.Started }},
	{"flows_refused_total", "counter", "Flows of a mapping that its lists or limits refused.", "", func(m *Mapping) int64 { return m.Refused }},
	{"flows_unreachable_total", "counter", "Flows of a mapping that found no target.", "", func(m *Mapping) int64 { return m.Unreachable }},
	{"bytes_total", "counter", "Bytes from clients of a mapping (up) and to them (down).", `,direction="up"`, func(m *Mapping) int64 { return m.Up }},
	{"bytes_total", "", "", `,direction="down"`, func(m *Mapping) int64 { return m.Down }},
}

// showMappingMetrics answers GET /metrics/mappings in Prometheus's text format.
// Mappings that nobody has used since the process began are left out.
func (s *Server) showMappingMetrics(w http.ResponseWriter, _ *http.Request) error {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	var used []Mapping
	for m := range s.live.Mappings() {
		if m.Live > 0 || m.Started > 0 || m.Refused > 0 {
			used = append(used, m)
		}
	}
	out := bufio.NewWriterSize(w, 32<<10)
	defer out.Flush()
	for _, family := range mappingMetrics {
		if family.kind != "" {
			fmt.Fprintf(out, "# HELP sluice_mapping_%s %s\n# TYPE sluice_mapping_%[1]s %[3]s\n", family.name, family.help, family.kind)
		}
		for i := range used {
			m := &used[i]
			if _, err := fmt.Fprintf(out, "sluice_mapping_%s{proto=%q,port=\"%d\",env=%s,service=%s%s} %d\n",
				family.name, m.Proto, m.Port, labelValue(m.Env), labelValue(m.Service), family.labels, family.value(m)); err != nil {
				return nil // the client is gone
			}
		}
	}
	return nil
}

// labelValue quotes a label's value as Prometheus's text format wants it.
func labelValue(s string) string {
	return `"` + labelEscapes.Replace(strings.ToValidUTF8(s, "\uFFFD")) + `"`
}

var labelEscapes = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)
