package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

func TestOriginAnswersHTTP(t *testing.T) {
	e := runOrigin(t)
	if err := verifyHTTP("http", serviceHTTP, "HTTP/1.1")(t.Context(), e); err != nil {
		t.Error(err)
	}
	if err := verifyEcho(t.Context(), e); err != nil {
		t.Error(err)
	}
	if err := verifyBlast(t.Context(), e); err != nil {
		t.Error(err)
	}
	// An answer that is not the origin's is noticed.
	e.addrs[serviceHTTP] = e.addrs[serviceEcho]
	if err := verifyHTTP("http", serviceHTTP, "HTTP/1.1")(t.Context(), e); err == nil {
		t.Error("an echo passed for HTTP")
	}
}

// What paths ask for, with other requests before and behind in the same segments.
func TestOriginPaths(t *testing.T) {
	e := runOrigin(t)
	c, err := net.Dial("tcp", e.addrs[serviceHTTP].String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	upload := "POST /upload HTTP/1.1\r\nHost: a\r\ncontent-length: 100000\r\n\r\n" + strings.Repeat("x", 100000)
	go io.WriteString(c, "GET / HTTP/1.1\r\n\r\nGET /large HTTP/1.1\r\n\r\n"+upload+upload+"GET /stream HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n")
	r := bufio.NewReader(c)
	for i, want := range []int{bodySize, largeSize, bodySize, bodySize, -1, bodySize} {
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("answer %d: %s, %v", i+1, resp.Status, err)
		}
		if want < 0 {
			if n := bytes.Count(body, []byte("data: ")); n != streamEvents {
				t.Errorf("%d events, want %d:\n%s", n, streamEvents, body)
			}
		} else if !bytes.Equal(body, filler(want)) {
			t.Errorf("answer %d has %d bytes that are not the %d expected", i+1, len(body), want)
		}
	}
	if _, err := io.WriteString(c, "POST /upload HTTP/1.1\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.ReadByte(); err == nil {
		t.Error("a body without a length was answered")
	}
}

// Heads come as the network cuts them: several in one read, one in several.
func TestOriginAnswersEachHead(t *testing.T) {
	e := runOrigin(t)
	c, err := net.Dial("tcp", e.addrs[serviceHTTP].String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r := bufio.NewReader(c)
	for _, part := range []struct {
		sent    string
		answers int
	}{
		{"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: b\r\n\r\nGET /c", 2},
		{" HTTP/1.1\r\nHost: c\r\n\r", 0},
		{"\n", 1},
	} {
		if _, err := io.WriteString(c, part.sent); err != nil {
			t.Fatal(err)
		}
		for range part.answers {
			resp, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != 200 || !bytes.Equal(body, originBody()) {
				t.Errorf("answer %s, %d bytes, %v; want the origin's", resp.Status, len(body), err)
			}
		}
	}
}

func TestOriginBodyIsAsLongAsItSays(t *testing.T) {
	if got := len(originBody()); got != bodySize {
		t.Errorf("body of %d bytes, want %d", got, bodySize)
	}
}

// The subcommand must not outlive its parent: it ends with its stdin.
func TestOriginMainEndsWithStdin(t *testing.T) {
	stdin, hold := io.Pipe()
	out, stdout := io.Pipe()
	done := make(chan error, 1)
	go func() { done <- originMain(0, stdin, stdout) }()
	var addrs addressBook
	if err := json.NewDecoder(out).Decode(&addrs); err != nil {
		t.Fatal(err)
	}
	if err := echoOnce(t.Context(), addrs[serviceEcho]); err != nil {
		t.Error(err)
	}
	hold.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
