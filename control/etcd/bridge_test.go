package etcd

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
)

func TestBridgePassesWarnings(t *testing.T) {
	var out bytes.Buffer
	b := newBridge(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}})))
	lg := b.logger().With(zap.String("member", "sluice"))
	lg.Info("not for us")
	lg.Warn("apply request took too long", zap.Duration("took", 150*time.Millisecond))
	lg.Error("write failed", zap.Error(errors.New("disk full")))
	b.silence()
	lg.Error("closed network connection")
	want := `level=WARN msg="etcd: apply request took too long" member=sluice took=150ms
level=ERROR msg="etcd: write failed" member=sluice error="disk full"
`
	if got := out.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// A disk that takes no more writes makes etcd log at fatal level, and some
// other ills at panic level. Neither may end an edge that serves.
func TestBridgeOutlivesFatal(t *testing.T) {
	for name, end := range map[string]func(*zap.Logger){
		"fatal": func(lg *zap.Logger) {
			lg.Fatal("failed to save entries", zap.Error(errors.New("no space left on device")))
		},
		"panic": func(lg *zap.Logger) {
			lg.Panic("failed to save entries", zap.Error(errors.New("no space left on device")))
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBridge(nil)
			over := make(chan bool, 1)
			go func() {
				carriedOn := false
				defer func() { over <- carriedOn }()
				end(b.logger())
				carriedOn = true
			}()
			if <-over {
				t.Error("the code after the log call ran")
			}
			err := <-b.failed
			for _, want := range []string{"failed to save entries", "no space left on device"} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("failure %q does not say %q", err, want)
				}
			}
		})
	}
}
