package h2_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/remotegpu/sluice/proxy/http/h2"
)

// TestReaderAgainstReference has x/net's framer write frames, and reads them in
// parts of every size.
func TestReaderAgainstReference(t *testing.T) {
	var wire bytes.Buffer
	fr := http2.NewFramer(&wire, nil)
	fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 7})
	fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte("block"), PadLength: 3,
		Priority: http2.PriorityParam{StreamDep: 3}})
	fr.WriteContinuation(1, true, []byte("more"))
	fr.WriteDataPadded(1, true, bytes.Repeat([]byte("d"), 16000), make([]byte, 200))
	fr.WriteWindowUpdate(0, 99)
	fr.WriteRSTStream(1, http2.ErrCodeCancel)
	fr.WriteGoAway(5, http2.ErrCodeEnhanceYourCalm, []byte("why"))
	fr.WriteRawFrame(0xbe, 0, 0, nil)
	for name, src := range map[string]io.Reader{
		"at once":     bytes.NewReader(wire.Bytes()),
		"byte by one": iotest.OneByteReader(bytes.NewReader(wire.Bytes())),
		"by halves":   iotest.HalfReader(bytes.NewReader(wire.Bytes())),
	} {
		var r h2.Reader
		r.Reset(src)
		next := func(want h2.Type) h2.Frame {
			t.Helper()
			f, err := r.Next()
			if err != nil || f.Type != want {
				t.Fatalf("%s: %v, %v, want type %v", name, f, err, want)
			}
			return f
		}
		settings := h2.DefaultSettings()
		f := next(h2.TypeSettings)
		if err := settings.Update(f.Payload); err != nil || settings.InitialWindow != 7 {
			t.Errorf("%s: %+v, %v", name, settings, err)
		}
		f = next(h2.TypeHeaders)
		if content, self, err := f.Content(); string(content) != "block" || self || err != nil || f.Stream != 1 {
			t.Errorf("%s: %q, %v, %v", name, content, self, err)
		}
		if f = next(h2.TypeContinuation); string(f.Payload) != "more" || !f.Has(h2.FlagEndHeaders) {
			t.Errorf("%s: %v", name, f)
		}
		f = next(h2.TypeData)
		if content, _, err := f.Content(); len(content) != 16000 || err != nil || !f.Has(h2.FlagEndStream) {
			t.Errorf("%s: %d bytes, %v", name, len(content), err)
		}
		if f = next(h2.TypeWindowUpdate); f.Increment() != 99 {
			t.Errorf("%s: %v", name, f)
		}
		if f = next(h2.TypeRSTStream); f.Code() != h2.Cancel {
			t.Errorf("%s: %v", name, f)
		}
		if f = next(h2.TypeGoAway); f.LastStream() != 5 || f.Code() != h2.EnhanceYourCalm {
			t.Errorf("%s: %v", name, f)
		}
		next(0xbe)
		if _, err := r.Next(); err != io.EOF {
			t.Errorf("%s: %v at the end", name, err)
		}
		r.Release()
	}
}

// TestAppendedFrames has x/net's framer read what the appending functions write.
func TestAppendedFrames(t *testing.T) {
	block := bytes.Repeat([]byte("\x00\x01a\x01b"), 10_000) // of three frames
	b := h2.AppendSettings(nil, h2.Setting{ID: h2.SettingMaxConcurrentStreams, Value: 9})
	b = h2.AppendSettingsAck(b)
	start := len(b)
	b = append(h2.BeginHeaders(b), block...)
	b = h2.EndHeaders(b, start, 1, true)
	start = len(b)
	b = append(h2.BeginHeaders(b), "\x88"...)
	b = h2.EndHeaders(b, start, 3, false)
	b = h2.AppendData(b, 3, []byte("data"), true)
	b = h2.AppendRSTStream(b, 3, h2.RefusedStream)
	b = h2.AppendWindowUpdate(b, 0, 5)
	b = h2.AppendPing(b, true, []byte("12345678"))
	b = h2.AppendGoAway(b, 3, h2.NoError, "bye")
	fr := http2.NewFramer(nil, bytes.NewReader(b))
	fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	var got []string
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			if err != io.EOF {
				t.Fatal(err)
			}
			break
		}
		got = append(got, f.Header().Type.String())
		if m, ok := f.(*http2.MetaHeadersFrame); ok && m.StreamID == 1 && (len(m.Fields) != 10_000 || !m.StreamEnded()) {
			t.Errorf("%d fields, ended %v", len(m.Fields), m.StreamEnded())
		}
	}
	if want := "SETTINGS SETTINGS HEADERS HEADERS DATA RST_STREAM WINDOW_UPDATE PING GOAWAY"; strings.Join(got, " ") != want {
		t.Errorf("%v", got)
	}
}

func TestReaderRefuses(t *testing.T) {
	frame := func(kind h2.Type, flags uint8, stream uint32, payload string) string {
		return string(h2.AppendHeader(nil, len(payload), kind, flags, stream)) + payload
	}
	for name, tc := range map[string]struct {
		wire string
		code h2.Code
	}{
		"too large":            {string(h2.AppendHeader(nil, h2.MaxFrame+1, h2.TypeData, 0, 1)), h2.FrameSizeError},
		"DATA on 0":            {frame(h2.TypeData, 0, 0, ""), h2.ProtocolError},
		"HEADERS on 0":         {frame(h2.TypeHeaders, 0, 0, ""), h2.ProtocolError},
		"RST_STREAM on 0":      {frame(h2.TypeRSTStream, 0, 0, "1234"), h2.ProtocolError},
		"RST_STREAM of 3":      {frame(h2.TypeRSTStream, 0, 1, "123"), h2.FrameSizeError},
		"SETTINGS on 1":        {frame(h2.TypeSettings, 0, 1, ""), h2.ProtocolError},
		"SETTINGS of 5":        {frame(h2.TypeSettings, 0, 0, "12345"), h2.FrameSizeError},
		"ack of 6":             {frame(h2.TypeSettings, h2.FlagAck, 0, "123456"), h2.FrameSizeError},
		"PING on 1":            {frame(h2.TypePing, 0, 1, "12345678"), h2.ProtocolError},
		"PING of 7":            {frame(h2.TypePing, 0, 0, "1234567"), h2.FrameSizeError},
		"GOAWAY on 1":          {frame(h2.TypeGoAway, 0, 1, "12345678"), h2.ProtocolError},
		"GOAWAY of 7":          {frame(h2.TypeGoAway, 0, 0, "1234567"), h2.FrameSizeError},
		"update of 3":          {frame(h2.TypeWindowUpdate, 0, 0, "123"), h2.FrameSizeError},
		"update by 0":          {frame(h2.TypeWindowUpdate, 0, 0, "\x80\x00\x00\x00"), h2.ProtocolError},
		"stray CONTINUATION":   {frame(h2.TypeContinuation, 0, 1, ""), h2.ProtocolError},
		"interrupted block":    {frame(h2.TypeHeaders, 0, 1, "") + frame(h2.TypePing, 0, 0, "12345678"), h2.ProtocolError},
		"block of two streams": {frame(h2.TypeHeaders, 0, 1, "") + frame(h2.TypeContinuation, 0, 3, ""), h2.ProtocolError},
		"unknown in a block":   {frame(h2.TypeHeaders, 0, 1, "") + frame(0xbe, 0, 0, ""), h2.ProtocolError},
	} {
		var r h2.Reader
		r.Reset(strings.NewReader(tc.wire))
		var err error
		for err == nil {
			_, err = r.Next()
		}
		var conn *h2.ConnError
		if !errors.As(err, &conn) || conn.Code != tc.code {
			t.Errorf("%s: %v, want %v", name, err, tc.code)
		}
		r.Release()
	}
	for name, wire := range map[string]string{
		"update by 0": frame(h2.TypeWindowUpdate, 0, 1, "\x00\x00\x00\x00"),
		"PRIORITY":    frame(h2.TypePriority, 0, 1, "1234"),
		"self":        frame(h2.TypePriority, 0, 1, "\x00\x00\x00\x01x"),
	} {
		var r h2.Reader
		r.Reset(strings.NewReader(wire + frame(h2.TypePing, 0, 0, "12345678")))
		_, err := r.Next()
		var stream *h2.StreamError
		if !errors.As(err, &stream) || stream.Stream != 1 {
			t.Errorf("%s: %v", name, err)
		}
		if f, err := r.Next(); err != nil || f.Type != h2.TypePing {
			t.Errorf("%s: then %v, %v", name, f, err)
		}
	}
}

func TestContentRefuses(t *testing.T) {
	for name, f := range map[string]h2.Frame{
		"no room for padding":  {Type: h2.TypeData, Flags: h2.FlagPadded},
		"padding too long":     {Type: h2.TypeData, Flags: h2.FlagPadded, Payload: []byte{3, 0, 0}},
		"no room for priority": {Type: h2.TypeHeaders, Flags: h2.FlagPriority, Payload: []byte{0, 0, 0, 0}},
	} {
		if _, _, err := f.Content(); err == nil {
			t.Errorf("%s passes", name)
		}
	}
}

func TestSettingsRefuse(t *testing.T) {
	for name, s := range map[string]h2.Setting{
		"push":    {ID: h2.SettingEnablePush, Value: 2},
		"window":  {ID: h2.SettingInitialWindowSize, Value: 1 << 31},
		"small":   {ID: h2.SettingMaxFrameSize, Value: 1<<14 - 1},
		"large":   {ID: h2.SettingMaxFrameSize, Value: 1 << 24},
		"connect": {ID: h2.SettingEnableConnect, Value: 2},
	} {
		settings := h2.DefaultSettings()
		if err := settings.Update(h2.AppendSettings(nil, s)[h2.HeaderLen:]); err == nil {
			t.Errorf("%s passes", name)
		}
	}
}

func TestWindows(t *testing.T) {
	w := h2.NewRecvWindow(100)
	if !w.Take(40) || w.Take(61) || w.Release(30) != 0 || w.Release(10) != 0 || !w.Take(20) || w.Release(5) != 45 || w.Take(86) || !w.Take(85) {
		t.Error("a window of 100 is none")
	}
	if w.Release(1) != 1 {
		t.Error("nothing is left, and nothing given back")
	}
	s := h2.SendWindow(h2.InitialWindow)
	if !s.Widen(-h2.InitialWindow-5) || s != -5 || !s.Widen(h2.MaxWindow) || s.Widen(6) {
		t.Error("a window for sending is none")
	}
}
