package main

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// TestImage writes an image twice and reads it as an engine does. `make
// image-test` runs one.
func TestImage(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "1700000000")
	dir := t.TempDir()
	img := image{program: filepath.Join(dir, "sluice"), roots: filepath.Join(dir, "roots.pem"), version: "v1.2.3", arch: "arm64"}
	for _, path := range []string{img.program, img.roots} {
		if err := os.WriteFile(path, []byte("content of "+filepath.Base(path)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	one, two := filepath.Join(dir, "one.tar"), filepath.Join(dir, "two.tar")
	for _, path := range []string{one, two} {
		if err := run(img, "sluice:latest", path); err != nil {
			t.Fatal(err)
		}
	}
	first, err := os.ReadFile(one)
	if err != nil {
		t.Fatal(err)
	}
	if second, err := os.ReadFile(two); err != nil || !slices.Equal(first, second) {
		t.Errorf("two images of the same differ: %v", err)
	}

	read, err := tarball.ImageFromPath(one, nil)
	if err != nil {
		t.Fatal(err)
	}
	file, err := read.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c := file.Config
	if c.User != "65532:65532" || file.Architecture != "arm64" || c.Labels["org.opencontainers.image.version"] != "v1.2.3" || c.Healthcheck == nil ||
		!slices.Equal(append(c.Entrypoint, c.Cmd...), []string{"/usr/bin/sluice", "run", "--config", "/etc/sluice/sluice.yaml"}) {
		shown, _ := json.MarshalIndent(file, "", "  ")
		t.Errorf("the image says of itself\n%s", shown)
	}
	layers, err := read.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("%d layers, %v", len(layers), err)
	}
	content, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer content.Close()
	found := map[string]*tar.Header{}
	for r := tar.NewReader(content); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		found[h.Name] = h
	}
	// cap_net_bind_service, cap_net_admin and cap_bpf, as `setcap ...=p` writes them.
	const capabilities = "\x00\x00\x00\x02" + "\x00\x14\x00\x00" + "\x00\x00\x00\x00" + "\x80\x00\x00\x00" + "\x00\x00\x00\x00"
	if h := found["usr/bin/sluice"]; h == nil || h.Mode != 0o755 || h.PAXRecords["SCHILY.xattr.security.capability"] != capabilities {
		t.Errorf("the program is %+v", h)
	}
	if h := found["var/lib/sluice/"]; h == nil || h.Uid != user || h.Mode != 0o700 {
		t.Errorf("the directory of state is %+v", h)
	}
	if found["etc/ssl/certs/ca-certificates.crt"] == nil || found["etc/sluice/sluice.yaml"] == nil {
		t.Errorf("the image has %d files, and lacks authorities or the node's file", len(found))
	}
}
