package http

import (
	"fmt"
	"net/http/httptrace"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// TestPoolForgets has kinds of connections come and go.
func TestPoolForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(&forwarder{})
		defer p.close()
		kept := variant{tls: true, serverName: "kept"}
		first := p.transport(kept)
		for i := range 2 * maxVariants {
			time.Sleep(time.Microsecond) // in the bubble: ages differ
			p.transport(variant{tls: true, serverName: fmt.Sprint(i)})
			p.transport(kept)
		}
		if n := len(p.kinds); n > maxVariants {
			t.Errorf("%d kinds are kept, at most %d may be", n, maxVariants)
		}
		if p.transport(kept) != first {
			t.Error("a kind in use was let go")
		}
		time.Sleep(2 * variantTime)
		if p.transport(kept); len(p.kinds) != 1 {
			t.Errorf("%d kinds are kept that nobody used for long", len(p.kinds)-1)
		}
	})
}

// TestLateTraceTouchesNothing has the transport say that the request is written
// when the response has come and the exchange may be another one's.
func TestLateTraceTouchesNothing(t *testing.T) {
	var owed []time.Duration
	x := &exchange{hop: hop{first: time.Second}}
	x.life.owe = func(limit time.Duration) { owed = append(owed, limit) }
	c := &stdCall{x: x}
	trace := c.trace()
	trace.WroteRequest(httptrace.WroteRequestInfo{})
	c.noMoreHeads()
	trace.WroteRequest(httptrace.WroteRequestInfo{})
	if want := []time.Duration{time.Second, 0}; !slices.Equal(owed, want) {
		t.Errorf("the exchange was given %v to wait, want %v", owed, want)
	}
}

// FuzzTargetURL checks that the transport is made to send what was received.
func FuzzTargetURL(f *testing.F) {
	for _, s := range []string{"/", "/a%2fb?c=;d", "//x", "//\"|", "/\"|^{}", "/a?", "/%zz", "*", "/a:b", "/a/../b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		target, ok := parseTarget(s)
		if !ok {
			return
		}
		sent := targetURL(target, "127.0.0.1:80", "app.x.test").RequestURI()
		if want := target.String(); sent != want && sent != "http://app.x.test"+want {
			t.Errorf("%q would be sent as %q", want, sent)
		}
	})
}
