package http_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// framer is a backend's end of a connection over HTTP/2, on which a test says
// each frame itself. x/net reads and writes them: another's work than what is
// tested.
type framer struct {
	*http2.Framer
	c    *net.TCPConn
	mu   sync.Mutex // guards what is written
	buf  bytes.Buffer
	pack *hpack.Encoder
}

// speak begins to speak HTTP/2 on c with settings.
func speak(c *net.TCPConn, settings ...http2.Setting) (*framer, error) {
	preface := make([]byte, len(http2.ClientPreface))
	if _, err := io.ReadFull(c, preface); err != nil || string(preface) != http2.ClientPreface {
		return nil, fmt.Errorf("the preface is %q, %v", preface, err)
	}
	f := &framer{Framer: http2.NewFramer(c, c), c: c}
	f.pack = hpack.NewEncoder(&f.buf)
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	f.AllowIllegalWrites = true
	return f, f.WriteSettings(settings...)
}

// framerBackend starts a server that hands each connection to serve, and returns
// its address. Every connection begins with settings.
func framerBackend(t *testing.T, serve func(f *framer), settings ...http2.Setting) string {
	return rawBackend(t, func(c *net.TCPConn) {
		if f, err := speak(c, settings...); err == nil {
			serve(f)
		}
	})
}

// request is what came of one.
type framerRequest struct {
	stream uint32
	path   string
	fields string // as "name: value" by lines
	ended  bool
}

// next returns the next frame that a test wants to see: SETTINGS are
// acknowledged, and so are PINGs; WINDOW_UPDATE goes by.
func (f *framer) next() (http2.Frame, error) {
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			return nil, err
		}
		switch fr := frame.(type) {
		case *http2.SettingsFrame:
			if !fr.IsAck() {
				f.locked(func() { f.WriteSettingsAck() })
			}
		case *http2.PingFrame:
			if !fr.IsAck() {
				f.locked(func() { f.WritePing(true, fr.Data) })
			}
		case *http2.WindowUpdateFrame:
		default:
			return frame, nil
		}
	}
}

func (f *framer) locked(write func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	write()
}

// request waits for a request's head.
func (f *framer) request() (r framerRequest, err error) {
	for {
		frame, err := f.next()
		if err != nil {
			return r, err
		}
		if head, ok := frame.(*http2.MetaHeadersFrame); ok {
			r = framerRequest{stream: head.StreamID, path: head.PseudoValue("path"), ended: head.StreamEnded()}
			for _, field := range head.Fields {
				r.fields += field.Name + ": " + field.Value + "\n"
			}
			return r, nil
		}
	}
}

// body reads DATA up to the end of a stream.
func (f *framer) body(r framerRequest) (content string, err error) {
	for ended := r.ended; !ended; {
		frame, err := f.next()
		if err != nil {
			return content, err
		}
		switch fr := frame.(type) {
		case *http2.DataFrame:
			content += string(fr.Data())
			ended = fr.StreamEnded()
		case *http2.MetaHeadersFrame:
			ended = true
		case *http2.RSTStreamFrame:
			return content, fmt.Errorf("reset with %v", fr.ErrCode)
		}
	}
	return content, nil
}

// block encodes fields, given as name and value by turns.
func (f *framer) block(fields ...string) []byte {
	f.buf.Reset()
	for pair := range slices.Chunk(fields, 2) {
		f.pack.WriteField(hpack.HeaderField{Name: pair[0], Value: pair[1]})
	}
	return slices.Clone(f.buf.Bytes())
}

// head sends a head.
func (f *framer) head(stream uint32, end bool, fields ...string) {
	f.locked(func() {
		f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: f.block(fields...), EndHeaders: true, EndStream: end})
	})
}

func (f *framer) data(stream uint32, end bool, content string) {
	f.locked(func() { f.WriteData(stream, end, []byte(content)) })
}

// ok answers a request with 200 and content.
func (f *framer) ok(stream uint32, content string) {
	f.head(stream, false, ":status", "200")
	f.data(stream, true, content)
}

// drain reads until the connection ends, and keeps it alive.
func (f *framer) drain() {
	for {
		if _, err := f.next(); err != nil {
			return
		}
	}
}

// toH2C is a rig with one route, by HTTP/2 in clear text to addr.
func toH2C(t *testing.T, addr string) *rig {
	return newRig(t, map[string]string{"app": `{"host":"app.x.test","backend":{"targets":["` + addr + `"],"h2c":true},"timeouts":{"connect":"10s"}}`})
}

// pieces is a body that comes by itself, so that it is not at hand with its head.
func pieces(s string) io.Reader { return io.MultiReader(strings.NewReader(s)) }
