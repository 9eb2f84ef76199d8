package http

import (
	"net/http"
	"testing"

	"github.com/remotegpu/sluice/proxy/http/field"
)

// TestExpandedValuesStayInTheirField sets values that no request can bring about
// today, since hosts and targets are checked; the field is where it must hold.
func TestExpandedValuesStayInTheirField(t *testing.T) {
	for _, value := range []string{"a\r\nSet-Cookie: x", "a\nb", "a\rb", "a\x00b", "\x7f", "\x1b[2J"} {
		var h field.List
		h.Add("X-Env", "forged")
		setField(&h, "X-Env", value)
		if h.Len() > 0 {
			t.Errorf("%q was set as %q", value, h.Get("X-Env"))
		}
	}
	var h field.List
	setField(&h, "x-env", "a\tb ü")
	if h.Get("X-Env") != "a\tb ü" {
		t.Errorf("%v", h.Lines())
	}
}

func TestUpgradeOffer(t *testing.T) {
	for _, tc := range []struct{ connection, upgrade, want string }{
		{"Upgrade", "websocket", "websocket"},
		{"keep-alive, upgrade", "SPDY/3.1", "SPDY/3.1"},
		{"keep-alive", "websocket", ""},
		{"", "websocket", ""},
		{"Upgrade", "", ""},
		{"Upgrade", "h2c", ""},
		{"Upgrade", "websocket, H2C", ""},
		{"Upgrade", "HTTP/2.0", ""},
		{"Upgrade", "TLS/1.2", ""},
	} {
		var h field.List
		if tc.connection != "" {
			h.Set("Connection", tc.connection)
		}
		if tc.upgrade != "" {
			h.Set("Upgrade", tc.upgrade)
		}
		if got := upgradeOffer(&h); got != tc.want {
			t.Errorf("Connection %q, Upgrade %q: %q, want %q", tc.connection, tc.upgrade, got, tc.want)
		}
	}
}

// TestRouteLabelsAreBounded counts more routes than there may be labels.
func TestRouteLabelsAreBounded(t *testing.T) {
	m := newMetrics(nil)
	labels := map[string]bool{}
	for i := range 3 * maxRouteLabels {
		labels[m.route(http.StatusText(200)+string(rune(0x4e00+i))).label] = true
	}
	if len(labels) > maxRouteLabels+1 || !labels["other"] {
		t.Errorf("%d labels, other among them: %v", len(labels), labels["other"])
	}
}
