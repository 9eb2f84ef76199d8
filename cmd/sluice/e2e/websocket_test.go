package e2e

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/coder/websocket"
)

// startEcho starts a WebSocket backend that sends back what it gets, and the
// word "bye" makes it close with a code of its own. How connections end goes to
// ended.
func startEcho(t *testing.T, prefix string) (addr string, ended chan error) {
	t.Helper()
	ended = make(chan error, 10)
	return startBackend(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"v1.echo"}, OriginPatterns: []string{"*"}})
		if err != nil {
			t.Error(err)
			return
		}
		defer c.CloseNow()
		c.SetReadLimit(-1)
		for {
			kind, message, err := c.Read(r.Context())
			if err != nil {
				ended <- err
				return
			}
			if string(message) == "bye" {
				ended <- c.Close(4001, "as you wish")
				return
			}
			if err := c.Write(r.Context(), kind, append([]byte(prefix), message...)); err != nil {
				ended <- err
				return
			}
		}
	})), ended
}

// webSocket opens a WebSocket through the node, over HTTP/1.1.
func webSocket(t *testing.T, n *node, host, path string) *websocket.Conn {
	t.Helper()
	c := newClient(t, n, "h1")
	conn, resp, err := websocket.Dial(within(t), "wss"+strings.TrimPrefix(n.url(host, path), "https"),
		&websocket.DialOptions{HTTPClient: c.http, Subprotocols: []string{"v1.echo"}})
	if err != nil {
		t.Fatalf("open a WebSocket: %v", err)
	}
	if got := resp.Header.Get("Sec-WebSocket-Protocol"); got != "v1.echo" {
		t.Errorf("subprotocol %q, want v1.echo", got)
	}
	t.Cleanup(func() { conn.CloseNow() })
	conn.SetReadLimit(-1)
	return conn
}

// say sends a message and returns the next one that comes.
func say(t *testing.T, c *websocket.Conn, kind websocket.MessageType, message []byte) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	sent := make(chan error, 1)
	go func() { sent <- c.Write(ctx, kind, message) }()
	gotKind, got, err := c.Read(ctx)
	if err := errors.Join(err, <-sent); err != nil {
		t.Fatalf("send a message of %d bytes and get one back: %v", len(message), err)
	}
	if gotKind != kind {
		t.Errorf("a message of kind %v, want %v", gotKind, kind)
	}
	return got
}

func TestWebSocket(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	echo, ended := startEcho(t, "")
	other, _ := startEcho(t, "other: ")
	n.mustPut("routes/ws", routeJSON(map[string]any{"host": "~^(?<id>[a-z]+)\\.ws\\.test$", "backend": echo, "service": "code"}))

	t.Run("echo", func(t *testing.T) {
		c := webSocket(t, n, "abc.ws.test", "/socket?token=secret")
		if got := say(t, c, websocket.MessageText, []byte("hello")); string(got) != "hello" {
			t.Errorf("got %q", got)
		}
		big, _ := io.ReadAll(pseudoRandom('w', 8<<20))
		if got := say(t, c, websocket.MessageBinary, big); !bytes.Equal(got, big) {
			t.Errorf("a message of %d bytes came back as one of %d", len(big), len(got))
		}
		pinged := make(chan error, 1)
		ctx, cancel := context.WithCancel(within(t))
		defer cancel()
		go func() { pinged <- c.Ping(ctx) }()
		go c.Read(ctx) // takes the pong
		if err := await(t, pinged, "a pong"); err != nil {
			t.Errorf("ping: %v", err)
		}
		c.CloseNow()
		await(t, ended, "the end of the connection at the backend")
		record := n.in(t).accessRecord(map[string]any{"route": "ws", "path": "/socket", "status": 101})
		for key, want := range map[string]any{
			"proto": "h1", "method": "GET", "env": "abc", "service": "code", "backend": echo, "port": float64(n.HTTPS),
		} {
			if record[key] != want {
				t.Errorf("access record: %s is %v, want %v", key, record[key], want)
			}
		}
		for _, key := range []string{"bytes_up", "bytes_down"} {
			if got, _ := record[key].(float64); got < 8<<20 {
				t.Errorf("access record: %s is %v, want more than the big message", key, record[key])
			}
		}
	})

	t.Run("backend closes", func(t *testing.T) {
		c := webSocket(t, n, "abc.ws.test", "/")
		if err := c.Write(within(t), websocket.MessageText, []byte("bye")); err != nil {
			t.Fatal(err)
		}
		_, _, err := c.Read(within(t))
		var closed websocket.CloseError
		if !errors.As(err, &closed) || closed.Code != 4001 || closed.Reason != "as you wish" {
			t.Errorf("%v, want the backend's close code", err)
		}
		if err := await(t, ended, "the end of the connection at the backend"); err != nil {
			t.Errorf("the closing handshake at the backend: %v", err)
		}
	})

	t.Run("client closes", func(t *testing.T) {
		c := webSocket(t, n, "abc.ws.test", "/")
		if err := c.Close(4002, "enough"); err != nil {
			t.Errorf("closing handshake: %v", err)
		}
		err := await(t, ended, "the end of the connection at the backend")
		var closed websocket.CloseError
		if !errors.As(err, &closed) || closed.Code != 4002 || closed.Reason != "enough" {
			t.Errorf("the backend saw %v, want the client's close code", err)
		}
	})

	t.Run("refused by the backend", func(t *testing.T) {
		n := n.in(t)
		n.mustPut("routes/plain", backendRoute("plain.r.test", startBackend(t, named("plain"))))
		_, resp, err := websocket.Dial(within(t), "wss"+strings.TrimPrefix(n.url("plain.r.test", "/"), "https"),
			&websocket.DialOptions{HTTPClient: newClient(t, n, "h1").http})
		if err == nil || resp == nil || resp.StatusCode != 200 {
			t.Errorf("%v, %v, want the backend's plain answer", resp, err)
		}
	})

	t.Run("outlives its route", func(t *testing.T) {
		n := n.in(t)
		c := webSocket(t, n, "abc.ws.test", "/")
		for i, edit := range []func(){
			func() { n.mustPut("routes/ws", backendRoute("~^(?<id>[a-z]+)\\.ws\\.test$", other)) },
			func() { n.delete("routes/ws") },
		} {
			edit()
			if got := say(t, c, websocket.MessageText, []byte("still here")); string(got) != "still here" {
				t.Errorf("after edit %d: %q", i, got)
			}
			if i == 0 {
				if got := say(t, webSocket(t, n, "abc.ws.test", "/"), websocket.MessageText, []byte("hello")); string(got) != "other: hello" {
					t.Errorf("a new connection after the edit: %q, want the other backend", got)
				}
			}
		}
		if err := c.Close(websocket.StatusNormalClosure, ""); err != nil {
			t.Errorf("closing handshake: %v", err)
		}
	})
}
