package certs_test

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"go.uber.org/zap"

	"github.com/remotegpu/sluice/certs"
)

func TestZapCore(t *testing.T) {
	var buf bytes.Buffer
	h := slog.NewTextHandler(&buf, &slog.HandlerOptions{
		Level: slog.LevelDebug,
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	})
	log := zap.New(certs.NewZapCore(h))
	for _, tt := range []struct {
		write func()
		want  string
	}{
		{func() { log.Error("no", zap.Error(errors.New("why"))) }, `level=WARN msg="certmagic: no" err=why`},
		{func() { log.Warn("hm", zap.Int("n", 2)) }, `level=INFO msg="certmagic: hm" n=2`},
		{func() { log.Info("ok") }, `level=DEBUG msg="certmagic: ok"`},
		{func() { log.Named("obtain").Error("no") }, `level=DEBUG msg="certmagic: no" logger=obtain`},
		{func() { log.Named("x.acme_client").Error("no") }, `level=DEBUG msg="certmagic: no" logger=x.acme_client`},
		{func() { log.With(zap.String("ca", "a")).Warn("hm", zap.Strings("ids", []string{"b"})) }, `level=INFO msg="certmagic: hm" ca=a ids=[b]`},
	} {
		buf.Reset()
		tt.write()
		if got := strings.TrimSpace(buf.String()); got != tt.want {
			t.Errorf("got  %s\nwant %s", got, tt.want)
		}
	}
	if err := log.Sync(); err != nil {
		t.Error(err)
	}
}

// What nobody wants to read is not put together.
func TestZapCoreIsQuiet(t *testing.T) {
	var buf bytes.Buffer
	log := zap.New(certs.NewZapCore(slog.NewTextHandler(&buf, nil)))
	log.Info("one")
	log.Named("renew").Error("two")
	if buf.Len() > 0 {
		t.Errorf("got %s, want nothing above debug", buf.String())
	}
}
