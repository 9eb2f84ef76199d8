package http_test

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"

	proxyhttp "github.com/remotegpu/sluice/proxy/http"
)

// The error codes of RFC 9114 section 8.1 and RFC 9204 section 6.
const (
	h3NoError         = 0x100
	h3StreamCreation  = 0x103
	h3ClosedCritical  = 0x104
	h3FrameUnexpected = 0x105
	h3FrameError      = 0x106
	h3ExcessiveLoad   = 0x107
	h3IDError         = 0x108
	h3SettingsError   = 0x109
	h3MissingSettings = 0x10a
	h3Incomplete      = 0x10d
	h3MessageError    = 0x10e
	qpackDecompress   = 0x200
	qpackEncoder      = 0x201
	qpackDecoder      = 0x202
)

// TestH3ConnectionErrors has a client break the rules of the connection, and wants
// the code that the RFC names.
func TestH3ConnectionErrors(t *testing.T) {
	get := h3Head("GET", "/")
	for name, tc := range map[string]struct {
		say  func(c *rawH3)
		want uint64
	}{
		// RFC 9114 section 6.2
		"two control streams":         {func(c *rawH3) { c.settled().uni(0x0) }, h3StreamCreation},
		"two encoder streams":         {func(c *rawH3) { c.settled().uni(0x2); c.uni(0x2) }, h3StreamCreation},
		"two decoder streams":         {func(c *rawH3) { c.settled().uni(0x3); c.uni(0x3) }, h3StreamCreation},
		"a push stream":               {func(c *rawH3) { c.settled().uni(0x1) }, h3StreamCreation},
		"the control stream ends":     {func(c *rawH3) { c.settled().control.Close() }, h3ClosedCritical},
		"the control stream is reset": {func(c *rawH3) { c.settled().answer(c.request(get)); c.control.CancelWrite(h3NoError) }, h3ClosedCritical},
		"the encoder stream ends":     {func(c *rawH3) { c.settled().uni(0x2).Close() }, h3ClosedCritical},
		"the decoder stream ends":     {func(c *rawH3) { c.settled().uni(0x3).Close() }, h3ClosedCritical},
		// section 6.2.1
		"DATA before SETTINGS":            {func(c *rawH3) { c.uni(0x0, h3Data("x")...) }, h3MissingSettings},
		"GOAWAY before SETTINGS":          {func(c *rawH3) { c.uni(0x0, h3Frame(0x7, varint(0))...) }, h3MissingSettings},
		"an unknown frame before them":    {func(c *rawH3) { c.uni(0x0, h3Frame(0x21, nil)...) }, h3MissingSettings},
		"the control stream ends at once": {func(c *rawH3) { c.uni(0x0).Close() }, h3ClosedCritical},
		// section 7.2
		"DATA on the control stream":         {func(c *rawH3) { c.settled().write(c.control, h3Data("x")) }, h3FrameUnexpected},
		"HEADERS on the control stream":      {func(c *rawH3) { c.settled().write(c.control, get) }, h3FrameUnexpected},
		"PUSH_PROMISE on the control stream": {func(c *rawH3) { c.settled().write(c.control, h3Frame(0x5, varint(0))) }, h3FrameUnexpected},
		"SETTINGS twice":                     {func(c *rawH3) { c.settled().write(c.control, h3Frame(0x4, nil)) }, h3FrameUnexpected},
		"HTTP/2's PRIORITY there":            {func(c *rawH3) { c.settled().write(c.control, h3Frame(0x2, nil)) }, h3FrameUnexpected},
		"HTTP/2's PING there":                {func(c *rawH3) { c.settled().write(c.control, h3Frame(0x6, nil)) }, h3FrameUnexpected},
		"HTTP/2's WINDOW_UPDATE there":       {func(c *rawH3) { c.settled().write(c.control, h3Frame(0x8, nil)) }, h3FrameUnexpected},
		"HTTP/2's CONTINUATION there":        {func(c *rawH3) { c.settled().write(c.control, h3Frame(0x9, nil)) }, h3FrameUnexpected},
		"CANCEL_PUSH of no push":             {func(c *rawH3) { c.settled().write(c.control, h3Frame(0x3, varint(0))) }, h3IDError},
		"GOAWAY that goes up": {func(c *rawH3) {
			c.settled().write(c.control, append(h3Frame(0x7, varint(4)), h3Frame(0x7, varint(8))...))
		}, h3IDError},
		"MAX_PUSH_ID that goes down": {func(c *rawH3) {
			c.settled().write(c.control, append(h3Frame(0xd, varint(4)), h3Frame(0xd, varint(3))...))
		}, h3IDError},
		"GOAWAY without an identifier":        {func(c *rawH3) { c.settled().write(c.control, h3Frame(0x7, nil)) }, h3FrameError},
		"MAX_PUSH_ID with more than that":     {func(c *rawH3) { c.settled().write(c.control, h3Frame(0xd, []byte{0, 0})) }, h3FrameError},
		"GOAWAY too large":                    {func(c *rawH3) { c.settled().write(c.control, h3Frame(0x7, make([]byte, 64<<10))) }, h3ExcessiveLoad},
		"a setting twice":                     {func(c *rawH3) { c.uni(0x0, h3Frame(0x4, []byte{0x6, 1, 0x6, 2})...) }, h3SettingsError},
		"HTTP/2's setting 0x2":                {func(c *rawH3) { c.uni(0x0, h3Frame(0x4, []byte{0x2, 0})...) }, h3SettingsError},
		"HTTP/2's setting 0x5":                {func(c *rawH3) { c.uni(0x0, h3Frame(0x4, []byte{0x5, 0})...) }, h3SettingsError},
		"ENABLE_CONNECT_PROTOCOL 2":           {func(c *rawH3) { c.uni(0x0, h3Frame(0x4, []byte{0x8, 2})...) }, h3SettingsError},
		"H3_DATAGRAM 2":                       {func(c *rawH3) { c.uni(0x0, h3Frame(0x4, []byte{0x33, 2})...) }, h3SettingsError},
		"SETTINGS cut short":                  {func(c *rawH3) { c.uni(0x0, h3Frame(0x4, []byte{0x6})...) }, h3FrameError},
		"DATA before HEADERS":                 {func(c *rawH3) { c.settled().request(h3Data("x"), get) }, h3FrameUnexpected},
		"SETTINGS on a request's stream":      {func(c *rawH3) { c.settled().request(h3Frame(0x4, nil), get) }, h3FrameUnexpected},
		"GOAWAY on a request's stream":        {func(c *rawH3) { c.settled().request(get, h3Frame(0x7, varint(0))) }, h3FrameUnexpected},
		"CANCEL_PUSH on a request's stream":   {func(c *rawH3) { c.settled().request(h3Frame(0x3, varint(0)), get) }, h3FrameUnexpected},
		"MAX_PUSH_ID on a request's stream":   {func(c *rawH3) { c.settled().request(h3Frame(0xd, varint(0)), get) }, h3FrameUnexpected},
		"PUSH_PROMISE on a request's stream":  {func(c *rawH3) { c.settled().request(h3Frame(0x5, varint(0)), get) }, h3FrameUnexpected},
		"HTTP/2's PRIORITY on a request's":    {func(c *rawH3) { c.settled().request(h3Frame(0x2, nil), get) }, h3FrameUnexpected},
		"HTTP/2's CONTINUATION behind a head": {func(c *rawH3) { c.settled().request(get, h3Frame(0x9, nil)) }, h3FrameUnexpected},
		"DATA behind the trailer":             {func(c *rawH3) { c.settled().request(h3Head("POST", "/"), h3Data("x"), h3Fields("a: b"), h3Data("y")) }, h3FrameUnexpected},
		"two trailers":                        {func(c *rawH3) { c.settled().request(h3Head("POST", "/"), h3Fields("a: b"), h3Fields("a: b")) }, h3FrameUnexpected},
		"a stream that ends within HEADERS":   {func(c *rawH3) { c.settled().request(get[:len(get)-1]) }, h3FrameError},
		"a stream that ends within a length":  {func(c *rawH3) { c.settled().request([]byte{0x1, 0x40}) }, h3FrameError},
		"a stream that ends within DATA":      {func(c *rawH3) { c.settled().request(h3Head("POST", "/"), h3Data("abc")[:4]) }, h3FrameError},
		"a stream that ends within unknown":   {func(c *rawH3) { c.settled().request(h3Frame(0x21, []byte("abc"))[:3]) }, h3FrameError},
		// RFC 9204
		"a dynamic entry is referred to": {func(c *rawH3) { c.settled().request(h3Frame(0x1, []byte{0, 0, 0x80})) }, qpackDecompress},
		"a dynamic name is referred to":  {func(c *rawH3) { c.settled().request(h3Frame(0x1, []byte{0, 0, 0x40, 0})) }, qpackDecompress},
		"a post-base entry":              {func(c *rawH3) { c.settled().request(h3Frame(0x1, []byte{0, 0, 0x10})) }, qpackDecompress},
		"a post-base name":               {func(c *rawH3) { c.settled().request(h3Frame(0x1, []byte{0, 0, 0x00, 0})) }, qpackDecompress},
		"a required insert count":        {func(c *rawH3) { c.settled().request(h3Frame(0x1, []byte{1, 0, 0xd1})) }, qpackDecompress},
		"a negative base":                {func(c *rawH3) { c.settled().request(h3Frame(0x1, []byte{0, 0x80, 0xd1})) }, qpackDecompress},
		"no such static entry":           {func(c *rawH3) { c.settled().request(h3Frame(0x1, []byte{0, 0, 0xff, 99 - 63})) }, qpackDecompress},
		"a field cut short":              {func(c *rawH3) { c.settled().request(h3Frame(0x1, []byte{0, 0, 0x51, 9, 'x'})) }, qpackDecompress},
		"an integer without end": {func(c *rawH3) {
			c.settled().request(h3Frame(0x1, append([]byte{0, 0, 0xff}, bytes.Repeat([]byte{0xff}, 99)...)))
		}, qpackDecompress},
		"a Huffman code that is none":        {func(c *rawH3) { c.settled().request(h3Frame(0x1, []byte{0, 0, 0x51, 0x84, 0xff, 0xff, 0xff, 0xff})) }, qpackDecompress},
		"an empty section":                   {func(c *rawH3) { c.settled().request(h3Frame(0x1, nil)) }, qpackDecompress},
		"the trailer refers to the table":    {func(c *rawH3) { c.settled().request(h3Head("POST", "/"), h3Frame(0x1, []byte{0, 0, 0x80})) }, qpackDecompress},
		"an entry is inserted":               {func(c *rawH3) { c.settled().uni(0x2, 0x41, 'a', 0x01, 'b') }, qpackEncoder},
		"an entry with a static name":        {func(c *rawH3) { c.settled().uni(0x2, 0xc1, 0x01, 'b') }, qpackEncoder},
		"an entry is duplicated":             {func(c *rawH3) { c.settled().uni(0x2, 0x00) }, qpackEncoder},
		"the dynamic table gets room":        {func(c *rawH3) { c.settled().uni(0x2, 0x3f, 0x01) }, qpackEncoder},
		"a section is acknowledged":          {func(c *rawH3) { c.settled().uni(0x3, 0x80) }, qpackDecoder},
		"an insert count increment":          {func(c *rawH3) { c.settled().uni(0x3, 0x01) }, qpackDecoder},
		"a decoder's integer without an end": {func(c *rawH3) { c.settled().uni(0x3, bytes.Repeat([]byte{0xff, 0x7f}, 1)...) }, qpackDecoder},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			addr := backend(t, drain)
			c := toBackend(t, addr)(t).rawH3(t)
			tc.say(c)
			if got := c.closedBy(); got != tc.want {
				t.Errorf("the connection ended by %#x, want %#x", got, tc.want)
			}
		})
	}
}

// drain is a backend that takes the whole request before it answers.
func drain(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) }

// TestH3MalformedRequests wants a stream error for each, and the connection to go
// on (RFC 9114 section 4.1.2).
func TestH3MalformedRequests(t *testing.T) {
	seen := &recorder{}
	c := toBackend(t, rawBackend(t, seen.serve))(t).rawH3(t).settled()
	plain := []string{":method: GET", ":scheme: https", ":authority: app.x.test", ":path: /"}
	without := func(i int) []byte {
		return h3Fields(append(append([]string{}, plain[:i]...), plain[i+1:]...)...)
	}
	with := func(lines ...string) []byte { return h3Fields(append(append([]string{}, plain...), lines...)...) }
	for name, tc := range map[string]struct {
		frames [][]byte
		want   uint64
	}{
		"no method":                        {[][]byte{without(0)}, h3MessageError},
		"no scheme":                        {[][]byte{without(1)}, h3MessageError},
		"neither authority nor host":       {[][]byte{without(2)}, h3MessageError},
		"no path":                          {[][]byte{without(3)}, h3MessageError},
		"an empty path":                    {[][]byte{h3Fields(":method: GET", ":scheme: https", ":authority: app.x.test", ":path: ")}, h3MessageError},
		"a path without slash":             {[][]byte{h3Fields(":method: GET", ":scheme: https", ":authority: app.x.test", ":path: a")}, h3MessageError},
		"an absolute path":                 {[][]byte{h3Fields(":method: GET", ":scheme: https", ":authority: app.x.test", ":path: https://other.test/")}, h3MessageError},
		"* for something else":             {[][]byte{h3Fields(":method: GET", ":scheme: https", ":authority: app.x.test", ":path: *")}, h3MessageError},
		"another scheme":                   {[][]byte{h3Fields(":method: GET", ":scheme: http", ":authority: app.x.test", ":path: /")}, h3MessageError},
		"the method twice":                 {[][]byte{with(":method: GET")}, h3MessageError},
		"the path twice":                   {[][]byte{with(":path: /b")}, h3MessageError},
		"the authority twice":              {[][]byte{with(":authority: b.x.test")}, h3MessageError},
		"a pseudo-header field late":       {[][]byte{h3Fields(":method: GET", "a: b", ":scheme: https", ":authority: app.x.test", ":path: /")}, h3MessageError},
		"one behind a cookie":              {[][]byte{h3Fields(":method: GET", "cookie: b", ":scheme: https", ":authority: app.x.test", ":path: /")}, h3MessageError},
		"one behind the host":              {[][]byte{h3Fields(":method: GET", ":scheme: https", ":path: /", "host: app.x.test", ":authority: app.x.test")}, h3MessageError},
		"an unknown one":                   {[][]byte{with(":proto: x")}, h3MessageError},
		"a response's":                     {[][]byte{with(":status: 200")}, h3MessageError},
		"a protocol without CONNECT":       {[][]byte{with(":protocol: websocket")}, h3MessageError},
		"CONNECT with a path":              {[][]byte{h3Fields(":method: CONNECT", ":scheme: https", ":authority: app.x.test", ":path: /")}, h3MessageError},
		"CONNECT without authority":        {[][]byte{h3Fields(":method: CONNECT")}, h3MessageError},
		"extended CONNECT without path":    {[][]byte{h3Fields(":method: CONNECT", ":protocol: websocket", ":scheme: https", ":authority: app.x.test")}, h3MessageError},
		"a name with upper case":           {[][]byte{with("Abc: x")}, h3MessageError},
		"a known name with upper case":     {[][]byte{with("Content-Length: 0")}, h3MessageError},
		"a name with a space":              {[][]byte{with("a b: x")}, h3MessageError},
		"a name with a line break":         {[][]byte{with("a\r\nx: x")}, h3MessageError},
		"a value with a line break":        {[][]byte{with("a: b\r\nx: y")}, h3MessageError},
		"a value with NUL":                 {[][]byte{with("a: b\x00")}, h3MessageError},
		"a value with a space in front":    {[][]byte{with("a:  b")}, h3MessageError},
		"a value with a tab behind":        {[][]byte{with("a: b\t")}, h3MessageError},
		"a path with a line break":         {[][]byte{h3Fields(":method: GET", ":scheme: https", ":authority: app.x.test", ":path: /\r\na: b")}, h3MessageError},
		"connection":                       {[][]byte{with("connection: close")}, h3MessageError},
		"keep-alive":                       {[][]byte{with("keep-alive: 1")}, h3MessageError},
		"proxy-connection":                 {[][]byte{with("proxy-connection: close")}, h3MessageError},
		"transfer-encoding":                {[][]byte{with("transfer-encoding: chunked")}, h3MessageError},
		"upgrade":                          {[][]byte{with("upgrade: websocket")}, h3MessageError},
		"te other than trailers":           {[][]byte{with("te: gzip")}, h3MessageError},
		"another host":                     {[][]byte{with("host: b.x.test")}, h3MessageError},
		"two hosts":                        {[][]byte{with("host: app.x.test", "host: app.x.test")}, h3MessageError},
		"content-length twice":             {[][]byte{with("content-length: 0", "content-length: 0")}, h3MessageError},
		"content-length that is no number": {[][]byte{with("content-length: +1")}, h3MessageError},
		"a body longer than it":            {[][]byte{with("content-length: 2"), h3Data("abc")}, h3MessageError},
		"a body longer by a frame":         {[][]byte{with("content-length: 2"), h3Data("ab"), h3Data("c")}, h3MessageError},
		"a body shorter than it":           {[][]byte{with("content-length: 2"), h3Data("a")}, h3MessageError},
		"no body where it wants one":       {[][]byte{with("content-length: 2")}, h3MessageError},
		"a body where it is 0":             {[][]byte{with("content-length: 0"), h3Data("a")}, h3MessageError},
		"a trailer with a pseudo-header":   {[][]byte{with("content-length: 1"), h3Data("a"), h3Fields(":path: /")}, h3MessageError},
		"a trailer with upper case":        {[][]byte{h3Head("POST", "/"), h3Data("a"), h3Fields("A: b")}, h3MessageError},
		"no frame at all":                  {nil, h3Incomplete},
		"an unknown frame alone":           {[][]byte{h3Frame(0x21, []byte("x"))}, h3Incomplete},
	} {
		t.Run(name, func(t *testing.T) {
			if got := c.resetBy(c.request(tc.frames...)); got != tc.want {
				t.Errorf("the stream ended by %#x, want %#x", got, tc.want)
			}
		})
	}
	if a, err := c.answer(c.request(h3Head("GET", "/after"))); err != nil || a.status() != "200" {
		t.Errorf("a good request on the connection: %v, %v", a, err)
	}
	for _, what := range seen.requests() {
		if what != "GET /after " {
			t.Errorf("the backend saw %q", what)
		}
	}
}

// TestH3WellFormedRequests sends what looks odd and is allowed.
func TestH3WellFormedRequests(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		io.WriteString(w, strings.Join([]string{r.Method, r.Host, string(body), r.Header.Get("Cookie"), r.Trailer.Get("A")}, "|"))
	})
	c := toBackend(t, addr)(t).rawH3(t).settled()
	c.write(c.control, bytes.Join([][]byte{h3Frame(0x21, []byte("grease")), h3Frame(0xf0700, []byte("\x00u=1")), h3Frame(0xd, varint(8)), h3Frame(0x7, varint(0))}, nil))
	c.uni(0x2, 0x20) // a capacity of 0
	c.uni(0x3, 0x44) // stream 4 was given up
	c.uni(0x21, []byte("grease")...)
	for name, tc := range map[string]struct {
		frames [][]byte
		want   string
	}{
		"host instead of authority": {[][]byte{h3Fields(":method: GET", ":scheme: https", ":path: /", "host: app.x.test")}, "GET|app.x.test|||"},
		"both":                      {[][]byte{h3Head("GET", "/", "host: app.x.test")}, "GET|app.x.test|||"},
		"any order":                 {[][]byte{h3Fields(":path: /", ":authority: app.x.test", ":scheme: https", ":method: GET")}, "GET|app.x.test|||"},
		"crumbs of a cookie":        {[][]byte{h3Head("GET", "/", "cookie: a=1", "x: y", "cookie: b=2", "cookie: c=3")}, "GET|app.x.test||a=1; b=2; c=3|"},
		"unknown frames":            {[][]byte{h3Frame(0x21, nil), h3Head("POST", "/"), h3Frame(0x40, []byte("xyz")), h3Data("a"), h3Frame(0x21, nil), h3Data("b")}, "POST|app.x.test|ab||"},
		"empty DATA":                {[][]byte{h3Head("POST", "/"), h3Data(""), h3Data("ab"), h3Data("")}, "POST|app.x.test|ab||"},
		"a body in pieces":          {[][]byte{h3Head("POST", "/", "content-length: 3"), h3Data("a"), h3Data("bc")}, "POST|app.x.test|abc||"},
		"a trailer":                 {[][]byte{h3Head("POST", "/", "trailer: a"), h3Data("a"), h3Fields("a: b"), h3Frame(0x21, nil)}, "POST|app.x.test|a||b"},
		"te: trailers":              {[][]byte{h3Head("GET", "/", "te: trailers")}, "GET|app.x.test|||"},
		"GET with a body":           {[][]byte{h3Head("GET", "/"), h3Data("ab")}, "GET|app.x.test|ab||"},
		"a base that means nothing": {[][]byte{h3Frame(0x1, append([]byte{0, 0x05}, h3Head("GET", "/")[4:]...))}, "GET|app.x.test|||"},
	} {
		t.Run(name, func(t *testing.T) {
			a, err := c.answer(c.request(tc.frames...))
			if err != nil || a.status() != "200" || a.body != tc.want {
				t.Errorf("%v %q (%v), want %q", a.heads, a.body, err, tc.want)
			}
		})
	}
	select {
	case <-c.conn.Context().Done():
		t.Error("the connection is over")
	default:
	}
}

// TestH3LargeHeads sends heads beyond the limit by their wire and by what they
// unfold to, on a connection that goes on.
func TestH3LargeHeads(t *testing.T) {
	addr := backend(t, drain)
	r := newRig(t, map[string]string{"app": `{"host":"app.x.test","backend":"` + addr + `"}`},
		func(cfg *proxyhttp.Config, _ *rig) { cfg.Limits.HeadBytes = 4 << 10 })
	c := r.rawH3(t).settled()
	for name, head := range map[string][]byte{
		"a long field":           h3Head("GET", "/", "x: "+strings.Repeat("~", 5<<10)),
		"many fields":            h3Head("GET", "/", strings.Split(strings.Repeat("x: y|", 200)+"x: y", "|")...),
		"entries of one byte":    h3Frame(0x1, append(h3Head("GET", "/")[2:], bytes.Repeat([]byte{0xc0 | 29}, 2000)...)), // accept: */*
		"a Huffman coded string": h3Head("GET", "/", "x: "+strings.Repeat("0", 6<<10)),
	} {
		a, err := c.answer(c.request(head))
		if err != nil || a.status() != "431" {
			t.Errorf("%s: %v, %v", name, a, err)
		}
	}
	if a, err := c.answer(c.request(h3Head("GET", "/"))); err != nil || a.status() != "200" {
		t.Errorf("a good request on the connection: %v, %v", a, err)
	}
}
