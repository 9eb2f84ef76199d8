package tlskeys_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io/fs"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/remotegpu/sluice/certs/tlskeys"
)

// TestECHKeysAreTakenUp makes keys, more than are kept, and removes them.
func TestECHKeysAreTakenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &storage{}
		v := s.view()
		var inUse atomic.Pointer[[]tls.EncryptedClientHelloKey]
		k := tlskeys.New(tlskeys.Config{Shared: v, UseTickets: func([][32]byte) {},
			UseECH: func(keys []tls.EncryptedClientHelloKey) { inUse.Store(&keys) }})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); k.Run(ctx) }()
		defer func() { cancel(); <-done }()
		if _, err := tlskeys.LoadECH(t.Context(), v); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("before there are any: %v", err)
		}
		var made [][]byte
		for i := range tlskeys.MaxECH + 2 {
			e, err := tlskeys.GenerateECH(t.Context(), v, "edge.example.com")
			if err != nil {
				t.Fatal(err)
			}
			made = append([][]byte{e.Keys[0].Config}, made...)
			synctest.Wait()
			keys := *inUse.Load()
			if len(keys) != min(i+1, tlskeys.MaxECH) {
				t.Fatalf("%d keys in use after %d were made", len(keys), i+1)
			}
			ids := map[byte]bool{}
			for j, key := range keys {
				ids[key.Config[4]] = true
				if !bytes.Equal(key.Config, made[j]) || key.SendAsRetry != (j == 0) {
					t.Errorf("key %d in use is another, or sent to clients: %v", j, key.SendAsRetry)
				}
			}
			if len(ids) != len(keys) {
				t.Error("two keys have the same id")
			}
			if again, err := tlskeys.LoadECH(t.Context(), v); err != nil || again.Record() != e.Record() {
				t.Errorf("read again: %v", err)
			}
		}
		if _, err := tlskeys.GenerateECH(t.Context(), v, ""); err == nil {
			t.Error("a key without a public name")
		}
		// What is of no use changes nothing.
		before := inUse.Load()
		good := s.values["shared/ech"]
		if _, err := s.put("shared/ech", good.Rev, []byte(`{"version":1,"keys":[{"config":"AAAA","secret":"AAAA"}]}`)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if inUse.Load() != before {
			t.Error("keys of no use were taken up")
		}
		if _, err := tlskeys.GenerateECH(t.Context(), v, "edge.example.com"); err == nil {
			t.Error("keys of no use were overwritten")
		}
		if err := tlskeys.RemoveECH(t.Context(), v); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if _, there := s.values["shared/ech"]; there || len(*inUse.Load()) != 0 {
			t.Errorf("after they were removed %d are in use", len(*inUse.Load()))
		}
	})
}
