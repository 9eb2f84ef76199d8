// Command image writes the container image of Sluice, without a container
// engine: a tar file that `docker load` and `podman load` take, and that
// `skopeo copy docker-archive:` pushes. The same program, roots and time give
// the same bytes. `make image` runs it.
package main

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/remotegpu/sluice/deploy"
)

// The user of the image, which no machine knows by another name.
const (
	user  = 65532
	uname = "sluice"
)

// image is what goes into an image.
type image struct {
	program string    // path of the binary, a static one
	roots   string    // path of a PEM file of certificate authorities
	version string    // for labels
	arch    string    // in Go's words
	made    time.Time // of everything in it
}

func main() {
	img := image{}
	flag.StringVar(&img.program, "program", "bin/sluice", "the static binary")
	flag.StringVar(&img.roots, "roots", "/etc/ssl/certs/ca-certificates.crt", "PEM file of certificate authorities, of Debian's ca-certificates")
	flag.StringVar(&img.version, "version", "dev", "the version")
	flag.StringVar(&img.arch, "arch", "amd64", "the architecture of the binary")
	tag := flag.String("tag", "sluice:latest", "the image's name")
	out := flag.String("o", "bin/sluice-image.tar", "the file to write")
	flag.Parse()
	if err := run(img, *tag, *out); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func run(img image, tag, out string) error {
	at, err := madeAt(os.Getenv("SOURCE_DATE_EPOCH"))
	if err != nil {
		return err
	}
	img.made = at
	ref, err := name.NewTag(tag)
	if err != nil {
		return fmt.Errorf("the image's name: %w", err)
	}
	built, err := img.build()
	if err != nil {
		return err
	}
	if err := tarball.WriteToFile(out, ref, built); err != nil {
		return fmt.Errorf("write the image: %w", err)
	}
	digest, err := built.Digest()
	if err != nil {
		return err
	}
	fmt.Printf("%s: %s %s\n", out, ref, digest)
	return nil
}

// madeAt is the time of files and history: SOURCE_DATE_EPOCH, or 1970.
func madeAt(epoch string) (time.Time, error) {
	if epoch == "" {
		return time.Unix(0, 0).UTC(), nil
	}
	seconds, err := strconv.ParseInt(epoch, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH is %q, and not seconds since 1970", epoch)
	}
	return time.Unix(seconds, 0).UTC(), nil
}

// build makes the image of one layer. It is empty otherwise: no shell, no
// package manager, nothing to keep up to date but the program and the roots.
func (img image) build() (v1.Image, error) {
	content, err := img.layer()
	if err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil })
	if err != nil {
		return nil, err
	}
	built, err := mutate.Append(empty.Image, mutate.Addendum{Layer: layer, History: v1.History{
		Created: v1.Time{Time: img.made}, CreatedBy: "make image", Comment: "the program and certificate authorities"}})
	if err != nil {
		return nil, err
	}
	file, err := built.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Created = "linux", img.arch, v1.Time{Time: img.made}
	file.Config = img.config()
	return mutate.ConfigFile(built, file)
}

func (img image) config() v1.Config {
	return v1.Config{
		User:       fmt.Sprintf("%d:%d", user, user),
		Entrypoint: []string{"/usr/bin/sluice"},
		Cmd:        []string{"run", "--config", "/etc/sluice/sluice.yaml"},
		Env:        []string{"PATH=/usr/bin", "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt", "HOME=/var/lib/sluice"},
		WorkingDir: "/var/lib/sluice",
		Volumes:    map[string]struct{}{"/var/lib/sluice": {}},
		StopSignal: "SIGTERM",
		// OCI images have no such field and engines for those alone pass it over; compose.yaml says it again.
		Healthcheck: &v1.HealthConfig{Test: []string{"CMD", "/usr/bin/sluice", "health"},
			Interval: 10 * time.Second, Timeout: 5 * time.Second, StartPeriod: 30 * time.Second, Retries: 3},
		Labels: map[string]string{
			"org.opencontainers.image.title":    "sluice",
			"org.opencontainers.image.version":  img.version,
			"org.opencontainers.image.licenses": "Apache-2.0",
			"org.opencontainers.image.source":   "https://github.com/remotegpu/sluice",
		},
	}
}

// layer returns a tar of the image's files.
func (img image) layer() ([]byte, error) {
	program, err := os.ReadFile(img.program)
	if err != nil {
		return nil, err
	}
	roots, err := os.ReadFile(img.roots)
	if err != nil {
		return nil, fmt.Errorf("%w; Debian's ca-certificates has it", err)
	}
	node, err := deploy.Files.ReadFile("sluice.yaml")
	if err != nil {
		return nil, err
	}
	// The journal's place is standard output here.
	node = bytes.Replace(node, []byte("access: /var/log/sluice/access.log"), []byte("access: stdout"), 1)
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	errs := []error{
		img.dir(w, "etc/", 0, 0o755), img.dir(w, "etc/sluice/", 0, 0o755),
		img.file(w, "etc/group", []byte("root:x:0:\n"+uname+":x:"+strconv.Itoa(user)+":\n"), 0o644),
		img.file(w, "etc/passwd", fmt.Appendf(nil, "root:x:0:0::/:/nologin\n%s:x:%d:%d::/var/lib/sluice:/nologin\n", uname, user, user), 0o644),
		img.file(w, "etc/sluice/sluice.yaml", node, 0o644),
		img.dir(w, "etc/ssl/", 0, 0o755), img.dir(w, "etc/ssl/certs/", 0, 0o755),
		img.file(w, "etc/ssl/certs/ca-certificates.crt", roots, 0o644),
		img.dir(w, "tmp/", 0, 0o1777),
		img.dir(w, "usr/", 0, 0o755), img.dir(w, "usr/bin/", 0, 0o755),
		img.executable(w, program),
		img.dir(w, "var/", 0, 0o755), img.dir(w, "var/lib/", 0, 0o755),
		img.dir(w, "var/lib/sluice/", user, 0o700),
		w.Close(),
	}
	return out.Bytes(), errors.Join(errs...)
}

func (img image) dir(w *tar.Writer, path string, owner int, mode int64) error {
	return w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: path, Mode: mode, Uid: owner, Gid: owner, ModTime: img.made, Format: tar.FormatPAX})
}

func (img image) file(w *tar.Writer, path string, content []byte, mode int64) error {
	return write(w, &tar.Header{Typeflag: tar.TypeReg, Name: path, Mode: mode, ModTime: img.made, Format: tar.FormatPAX}, content)
}

// The capabilities that the program's file permits, as capabilities(7) numbers them.
const (
	netBindService = 10 // ports below 1024
	netAdmin       = 12 // ports_mode steer, large socket buffers
	bpf            = 39 // ports_mode steer
)

// executable writes the program with its capabilities: an engine gives none to a
// user other than root by itself. They are permitted, and not effective: then the
// program starts as well where an engine withholds some, and raises what it has.
func (img image) executable(w *tar.Writer, content []byte) error {
	// struct vfs_cap_data, version 2: permitted and inheritable, low and high.
	attr := binary.LittleEndian.AppendUint32(nil, 0x02000000)
	for _, word := range []uint32{1<<netBindService | 1<<netAdmin, 0, 1 << (bpf - 32), 0} {
		attr = binary.LittleEndian.AppendUint32(attr, word)
	}
	return write(w, &tar.Header{Typeflag: tar.TypeReg, Name: "usr/bin/sluice", Mode: 0o755, ModTime: img.made, Format: tar.FormatPAX,
		PAXRecords: map[string]string{"SCHILY.xattr.security.capability": string(attr)}}, content)
}

func write(w *tar.Writer, header *tar.Header, content []byte) error {
	header.Size = int64(len(content))
	if err := w.WriteHeader(header); err != nil {
		return err
	}
	_, err := w.Write(content)
	return err
}
