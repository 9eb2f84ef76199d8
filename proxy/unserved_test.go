package proxy_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"testing"

	"github.com/remotegpu/sluice/proxy"
)

// records keeps access log records.
type records struct {
	mu  sync.Mutex
	all []map[string]any
}

func (r *records) Write(p []byte) (int, error) {
	for line := range bytes.Lines(p) {
		record := map[string]any{}
		if err := json.Unmarshal(line, &record); err != nil {
			return 0, err
		}
		r.mu.Lock()
		r.all = append(r.all, record)
		r.mu.Unlock()
	}
	return len(p), nil
}

func (r *records) list() []map[string]any {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.all)
}

// TestUnservedConnectionsAreRecorded sends to a port with HTTP alone what no
// exchange comes of: each connection leaves a record, and just one.
func TestUnservedConnectionsAreRecorded(t *testing.T) {
	log := &records{}
	e := newEdge(t, func(cfg *proxy.Config) { cfg.AccessLog = slog.New(slog.NewJSONHandler(log, nil)) })
	port := freePort(t)
	e.put(t, port, `{"http":"`+greeter(t, "backend")+`","env":"garbage"}`)
	for i, tc := range []struct{ said, end string }{
		{"SSH-2.0-OpenSSH_9.2\r\n\r\n", "error"},
		{"\x16\x03\x01\x00\x05hello", "error"},
		{"\x00\x00\x00\x00\r\n\r\n", "error"},
		{"GET / HT", "client_closed"},
		{"GET /well/formed HTTP/1.1\r\nHost: a.example.com\r\nConnection: close\r\n\r\n", "backend_malformed"},
	} {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, tc.said)
		if tc.end != "backend_malformed" {
			c.(*net.TCPConn).CloseWrite()
		}
		io.Copy(io.Discard, c)
		c.Close()
		eventually(t, "a record of "+tc.said, func() error {
			if n := len(log.list()); n != i+1 {
				return fmt.Errorf("%d records", n)
			}
			return nil
		})
		if r := log.list()[i]; r["end"] != tc.end || r["env"] != "garbage" || r["client"] != c.LocalAddr().String() || tc.end == "error" && r["err"] == nil {
			t.Errorf("%q: record %v, want end %s", tc.said, r, tc.end)
		}
	}
}
