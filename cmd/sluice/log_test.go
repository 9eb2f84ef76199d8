package main

import (
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/sluice/cmd/sluice/config"
)

func TestDurationsInTheLog(t *testing.T) {
	for format, want := range map[string]string{"json": `"within":"48h","every":"3s"`, "text": "within=48h every=3s"} {
		var out strings.Builder
		newLogger(config.Log{Level: "info", Format: format}, &out).Info("x", "within", 48*time.Hour, "every", 3*time.Second)
		if !strings.Contains(out.String(), want) {
			t.Errorf("%s: %swant %s in it", format, out.String(), want)
		}
	}
}
