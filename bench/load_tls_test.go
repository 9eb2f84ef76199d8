package main

import (
	"strings"
	"testing"
	"time"
)

func TestHandshakes(t *testing.T) {
	e := serveWeb(t, answerOrigin)
	for _, resumed := range []bool{false, true} {
		s, err := handshakes{atOnce: 2, resumed: resumed}.measure(t.Context(), e, phases{warm: 50 * time.Millisecond, main: time.Second})
		if err != nil || s.Units <= 0 || s.Cost <= 0 || s.P50 <= 0 {
			t.Errorf("resumed %v: sample = %+v, %v; want figures", resumed, s, err)
		}
	}
	// A server that does not resume is no peer of those that do.
	never := serveWeb(t, answerOrigin, noTickets)
	_, err := handshakes{atOnce: 1, resumed: true}.measure(t.Context(), never, phases{warm: time.Millisecond, main: 200 * time.Millisecond})
	if err == nil || !strings.Contains(err.Error(), "was resumed: false, want true") {
		t.Errorf("without tickets: %v, want that nothing was resumed", err)
	}
}
