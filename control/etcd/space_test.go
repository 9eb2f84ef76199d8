package etcd_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/sluice/control/etcd"
)

// TestFullEtcdTakesWritesAgain has the versions of a key fill the quota: keys can be
// removed all the same, which says what is wrong elsewhere, and the embedded etcd
// helps itself.
func TestFullEtcdTakesWritesAgain(t *testing.T) {
	srv := start(t, etcd.ServerConfig{Dir: t.TempDir(), ListenClient: "127.0.0.1:0", QuotaBytes: 8 << 20, UnsafeNoFsync: true})
	c := dial(t, srv.Endpoint())
	edit := func(key string, value string) error {
		_, err := c.Commit(t.Context(), []etcd.Edit{{Key: key, Value: []byte(value), Blind: true}}, "test")
		return err
	}
	if err := edit("routes/small", "x"); err != nil {
		t.Fatal(err)
	}
	var err error
	for i := 0; err == nil && i < 1000; i++ {
		err = edit("routes/a", fmt.Sprint(i)+strings.Repeat("x", 100<<10))
	}
	if !errors.Is(err, etcd.ErrFull) || !c.Full() {
		t.Fatalf("etcd is full: error %v, full %v", err, c.Full())
	}
	if _, err := c.Commit(t.Context(), []etcd.Edit{{Key: "routes/small", Delete: true, Blind: true}}, "test"); err != nil {
		t.Errorf("a removal: %v", err)
	}
	again := time.NewTicker(100 * time.Millisecond)
	defer again.Stop()
	late := time.After(patience)
	for err = edit("routes/b", "1"); err != nil; err = edit("routes/b", "1") {
		if !errors.Is(err, etcd.ErrFull) {
			t.Fatal(err)
		}
		select {
		case <-again.C:
		case <-late:
			t.Fatal("etcd is full for ever")
		}
	}
	if c.Full() {
		t.Error("etcd takes writes, and the client says that it is full")
	}
}
