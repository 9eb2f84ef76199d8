package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/remotegpu/sluice/cmd/sluice/config"
	"github.com/remotegpu/sluice/control/fleet"
)

// cards is where a Registrar leaves what it writes.
type cards chan string

func (c cards) SetRecord(string)   {}
func (c cards) SetProgress(string) {}
func (c cards) Set(_, card string) { c <- card }

// TestReflectedAddressesOutliveTheProcess has a node found by reflectors, and begin
// anew where they do not answer.
func TestReflectedAddressesOutliveTheProcess(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "203.0.113.7") }))
	defer server.Close()
	cfg := &config.Config{Node: "edge-1", Data: t.TempDir()}
	cfg.Fleet.Reflectors = []string{server.URL}
	// The reflectors are asked once the first card is written: the two run side by
	// side, and either may be the faster.
	begin := func() (first string, written cards, end func()) {
		n := &node{cfg: cfg, log: slog.New(slog.DiscardHandler), parts: map[string]func(context.Context) error{}}
		written = make(cards, 8)
		var err error
		if n.registrar, err = fleet.New(n.registrarConfig("a"), written); err != nil {
			t.Fatal(err)
		}
		if err := n.openAddresses(); err != nil {
			t.Fatal(err)
		}
		n.registrar.SetState(fleet.Ready)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 2)
		go func() { done <- n.registrar.Run(ctx) }()
		first = <-written
		go func() { done <- n.parts["reflectors"](ctx) }()
		return first, written, func() {
			cancel()
			for range 2 {
				if err := <-done; err != nil {
					t.Error(err)
				}
			}
		}
	}
	const joining, found = `{"state":"joining","addresses":[],"weight":1,"names":false}`, `{"state":"ready","addresses":["203.0.113.7"],"weight":1,"names":false}`
	first, written, end := begin()
	if first != joining {
		t.Errorf("the card is %s first, want %s", first, joining)
	}
	if card := <-written; card != found {
		t.Errorf("the card is %s then, want %s", card, found)
	}
	end()
	server.Close()
	first, _, end = begin()
	defer end()
	if first != found {
		t.Errorf("of the next process the card is %s first, want %s", first, found)
	}
}
