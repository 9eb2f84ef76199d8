package v1_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"log/slog"
	"os"
	"testing"

	v1 "github.com/remotegpu/sluice/control/api/v1"
)

var update = flag.Bool("update", false, "write api.json anew")

// TestDocument wants the document that is checked in to be the one that is
// served: a change of the API is to be seen in review.
func TestDocument(t *testing.T) {
	doc, err := v1.New(v1.Config{Logger: slog.New(slog.DiscardHandler)}).OpenAPI()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := json.Indent(&out, doc, "", "  "); err != nil {
		t.Fatal(err)
	}
	out.WriteByte('\n')
	if *update {
		if err := os.WriteFile("api.json", out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	there, err := os.ReadFile("api.json")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(there, out.Bytes()) {
		t.Error("api.json is not what is served; look at what changed: go test ./control/api/v1 -run TestDocument -update && git diff")
	}
}
