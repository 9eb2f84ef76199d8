package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
)

// The HTTP origin answers bodySize bytes to everything but these paths.
const (
	bodySize  = 1024
	largePath = "/large" // largeSize bytes
	largeSize = 100 << 10
	// uploadPath takes the body of a request; the bench sends uploadSize bytes.
	uploadPath = "/upload"
	uploadSize = 10 << 20
	streamPath = "/stream" // an event stream
	// webSocketPath changes protocols and sends back what comes then.
	webSocketPath = "/websocket"
)

// filler returns n bytes of text, a multiple of 64.
func filler(n int) []byte {
	return []byte(strings.Repeat("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcde\n", n/64))
}

// originBody is the HTTP origin's answer to everything else.
func originBody() []byte { return filler(bodySize) }

var headEnd = []byte("\r\n\r\n")

// httpOrigin is one connection to the HTTP origin.
type httpOrigin struct {
	net.Conn
	usual, large []byte // whole responses
	out          []byte // of the heads read so far, not written yet
}

// serveHTTP answers each request head that comes. It looks at the path, at the
// length of a body and at nothing else.
func serveHTTP(c net.Conn) {
	o := &httpOrigin{Conn: c, usual: response(originBody()), large: response(filler(largeSize))}
	buf := make([]byte, 64<<10)
	held, body := 0, 0 // bytes of buf, and of a body that are still to come
	for {
		n, err := c.Read(buf[held:])
		if err != nil {
			return
		}
		rest := buf[:held+n]
		for {
			if body > 0 {
				taken := min(body, len(rest))
				if body, rest = body-taken, rest[taken:]; body > 0 {
					break
				}
				o.out = append(o.out, o.usual...)
			}
			end := bytes.Index(rest, headEnd)
			if end < 0 {
				break
			}
			head := rest[:end+2]
			rest = rest[end+len(headEnd):]
			if _, target, _ := bytes.Cut(head, []byte(" ")); bytes.HasPrefix(target, []byte(webSocketPath)) {
				o.webSocket(head, rest)
				return
			}
			if body, err = o.answer(head); err != nil {
				return
			}
		}
		if held = copy(buf, rest); held == len(buf) {
			return // a head of 64 KB: not ours
		}
		if o.flush() != nil {
			return
		}
	}
}

// flush writes the answers that wait.
func (o *httpOrigin) flush() error {
	if len(o.out) == 0 {
		return nil
	}
	_, err := o.Write(o.out)
	o.out = o.out[:0]
	return err
}

// answer answers a request, or returns how long the body is that has to come
// before.
func (o *httpOrigin) answer(head []byte) (body int, err error) {
	_, target, _ := bytes.Cut(head, []byte(" "))
	switch {
	case bytes.HasPrefix(target, []byte(largePath)):
		o.out = append(o.out, o.large...)
	case bytes.HasPrefix(target, []byte(uploadPath)):
		return contentLength(head)
	case bytes.HasPrefix(target, []byte(streamPath)):
		if err := o.flush(); err != nil {
			return 0, err
		}
		return 0, o.stream()
	default:
		o.out = append(o.out, o.usual...)
	}
	return 0, nil
}

// contentLength finds the length of a request's body.
func contentLength(head []byte) (int, error) {
	value := fieldOf(head, "Content-Length")
	if value == nil {
		return 0, errors.New("a body without a length")
	}
	return strconv.Atoi(string(value))
}

// fieldOf returns the value of a field of a request's head, nil where it has none
// of that name.
func fieldOf(head []byte, wanted string) []byte {
	for line := range bytes.Lines(head) {
		name, value, _ := bytes.Cut(line, []byte(":"))
		if bytes.EqualFold(name, []byte(wanted)) {
			return bytes.TrimSpace(value)
		}
	}
	return nil
}

// responseHead begins a response of the origin's.
func responseHead(contentType string) string {
	return "HTTP/1.1 200 OK\r\nServer: origin\r\nDate: " + time.Now().UTC().Format("Mon, 02 Jan 2006 15:04:05 GMT") +
		"\r\nContent-Type: " + contentType + "\r\n"
}

// response is a whole response.
func response(body []byte) []byte {
	head := responseHead("text/plain") + "Content-Length: " + strconv.Itoa(len(body)) + "\r\n\r\n"
	return append([]byte(head), body...)
}

const (
	// streamEvents are the events of an event stream, streamGap apart.
	streamEvents = 3
	streamGap    = 5 * time.Millisecond
)

// stream sends events as a language model does: each by itself, and says when it
// was sent, in nanoseconds of the machine's clock.
func (o *httpOrigin) stream() error {
	// The field has nginx pass events on as they come, and stays there.
	head := responseHead("text/event-stream") + "X-Accel-Buffering: no\r\nTransfer-Encoding: chunked\r\n\r\n"
	if _, err := o.Write([]byte(head)); err != nil {
		return err
	}
	for i := range streamEvents {
		if i > 0 {
			time.Sleep(streamGap)
		}
		event := fmt.Sprintf("data: %d\n\n", time.Now().UnixNano())
		if _, err := fmt.Fprintf(o, "%x\r\n%s\r\n", len(event), event); err != nil {
			return err
		}
	}
	_, err := o.Write([]byte("0\r\n\r\n"))
	return err
}
