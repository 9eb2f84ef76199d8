// Package demo is the built-in backend of `make run`: a small web server that
// shows what arrives behind the proxy, so that a newcomer needs no backend of
// their own and the tour has something to talk to. It serves loopback only, is
// off unless sluice.yaml asks for it, and knows nothing of the rest.
package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/coder/websocket"
)

const page = `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Sluice demo</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:42em;margin:4em auto;padding:0 1em}pre{background:#8882;padding:1em}</style>
<h1>It flows.</h1>
<p>This page came from the demo backend, through Sluice, by <b id="proto">?</b>.</p>
<pre id="ws">WebSocket: connecting...</pre>
<script>
const entry = performance.getEntriesByType("navigation")[0];
document.getElementById("proto").textContent = entry && entry.nextHopProtocol || "HTTP";
const out = document.getElementById("ws");
const ws = new WebSocket(location.origin.replace(/^http/, "ws") + "/ws");
ws.onopen = () => ws.send("hello through the edge");
ws.onmessage = e => { out.textContent = "WebSocket: " + e.data; };
ws.onerror = () => { out.textContent = "WebSocket: failed"; };
ws.onclose = () => { out.textContent += " (closed)"; };
</script>
</html>
`

// Handler serves the demo:
//
//	/         a page that opens a WebSocket
//	/echo     the request as it arrived, as JSON; the body's length
//	/ws       a WebSocket that sends back what it gets
//	/sse      server-sent events, ?n=5 of them, ?every=200ms
//	/bytes    ?n=1000000 bytes
//	/trailers a response with a trailer
func Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		io.WriteString(w, page)
	})
	mux.HandleFunc("/echo", echo)
	mux.HandleFunc("/ws", serveWebSocket)
	mux.HandleFunc("/sse", serveEvents)
	mux.HandleFunc("/bytes", serveBytes)
	mux.HandleFunc("/trailers", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Trailer", "X-Checksum")
		io.WriteString(w, "body\n")
		w.Header().Set("X-Checksum", "123")
	})
	return mux
}

func echo(w http.ResponseWriter, r *http.Request) {
	n, err := io.Copy(io.Discard, r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.Encode(map[string]any{ // an error here means that the client is gone
		"method": r.Method, "host": r.Host, "uri": r.RequestURI, "proto": r.Proto,
		"headers": r.Header, "body_bytes": n, "trailers": r.Trailer,
	})
}

func serveWebSocket(w http.ResponseWriter, r *http.Request) {
	// Any page may talk to the demo: it has nothing to protect.
	c, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
	if err != nil {
		return // Accept has answered
	}
	defer c.CloseNow()
	for {
		kind, message, err := c.Read(r.Context())
		if err != nil || c.Write(r.Context(), kind, message) != nil {
			return
		}
	}
}

func serveEvents(w http.ResponseWriter, r *http.Request) {
	n, err := strconv.Atoi(r.FormValue("n"))
	if err != nil {
		n = 5
	}
	every, err := time.ParseDuration(r.FormValue("every"))
	if err != nil || every <= 0 {
		every = 200 * time.Millisecond
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-cache")
	tick := time.NewTicker(every)
	defer tick.Stop()
	for i := range n {
		fmt.Fprintf(w, "data: event %d of %d\n\n", i+1, n)
		if http.NewResponseController(w).Flush() != nil {
			return
		}
		select {
		case <-tick.C:
		case <-r.Context().Done():
			return
		}
	}
}

func serveBytes(w http.ResponseWriter, r *http.Request) {
	n, err := strconv.ParseInt(r.FormValue("n"), 10, 64)
	if err != nil || n < 0 {
		http.Error(w, "give ?n= bytes", http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
	io.Copy(w, io.LimitReader(zeros{}, n)) // an error here means that the client is gone
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// Serve answers on ln, which it owns, until ctx ends. It returns nil then.
func Serve(ctx context.Context, ln net.Listener, log *slog.Logger) error {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	srv := &http.Server{
		Handler: Handler(), Protocols: protocols, ReadHeaderTimeout: 10 * time.Second,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog:    slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	stopped := make(chan struct{})
	defer context.AfterFunc(ctx, func() {
		defer close(stopped)
		srv.Close()
	})()
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	<-stopped
	return nil
}
