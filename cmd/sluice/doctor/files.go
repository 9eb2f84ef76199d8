package doctor

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/remotegpu/sluice/cmd/sluice/sandbox"
)

func checkConfig(_ context.Context, s *Subject, r *Report) {
	r.ok("%s is good", s.Path)
	if err := s.Config.CheckSecrets(); err != nil {
		r.add(Critical, "", "%v", err)
	}
	for _, f := range s.Config.Files() {
		switch _, err := os.Stat(f.Path); {
		case errors.Is(err, fs.ErrNotExist) && f.Field == "cluster_key_file":
		case err != nil:
			r.add(Critical, "", "%s: %v", f.Field, err)
		}
	}
	info, err := os.Stat(s.Path)
	if err != nil || info.Mode().Perm()&0o004 == 0 {
		return
	}
	var inside []string
	c := s.Config
	for name, is := range map[string]bool{"cookie_key": c.CookieKey != "", "etcd.password": c.Etcd.Password != ""} {
		if is {
			inside = append(inside, name)
		}
	}
	for name := range c.DNS {
		inside = append(inside, "dns."+name)
	}
	text, err := os.ReadFile(s.Path)
	if len(inside) > 0 && err == nil && !strings.Contains(string(text), "${") {
		slices.Sort(inside)
		r.add(Warning, "chmod o= "+s.Path+", or have the secrets in the environment (${NAME})", "everybody on the machine can read %s, which holds secrets (%s)", s.Path, strings.Join(inside, ", "))
	}
}

func checkData(_ context.Context, s *Subject, r *Report) {
	dir := s.Config.Data
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		r.add(Note, "", "the data directory %s is made at the first start", dir)
		return
	case errors.Is(err, fs.ErrPermission):
		r.unknown("the data directory: %v", err)
		return
	case err != nil:
		r.add(Critical, "", "the data directory: %v", err)
		return
	case !info.IsDir():
		r.add(Critical, "mv "+dir+" "+dir+".old", "%s is no directory", dir)
		return
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		r.add(Warning, "chmod 700 "+dir, "others can look into the data directory %s (mode %#o), where keys are", dir, mode)
	} else {
		r.ok("the data directory %s is the node's own", dir)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if id, err := sandbox.Lookup(s.Config.User); s.Config.User != "" && ok {
		switch {
		case err != nil:
			r.add(Critical, "", "user: %v", err)
		case int(st.Uid) != id.UID:
			r.add(Critical, "chown -R "+strings.SplitN(s.Config.User, ":", 2)[0]+": "+dir, "the data directory %s belongs to user %d, and the node runs as %s", dir, st.Uid, s.Config.User)
		}
	}
}

// soon is how long before its end a certificate in a file is told of, and
// soonPart the part of its life that is left then if that is less: one for six
// days is not late when it is new.
const (
	soon     = 21 * 24 * time.Hour
	soonPart = 3
)

func checkCertificates(_ context.Context, s *Subject, r *Report) {
	for _, f := range s.Config.Files() {
		if f.Secret || strings.HasPrefix(f.Field, "password_files.") || strings.HasSuffix(f.Field, ".crl") {
			continue
		}
		text, err := os.ReadFile(f.Path)
		if err != nil {
			continue // told by config
		}
		var first *x509.Certificate
		n := 0
		for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				continue
			}
			if n++; first == nil || cert.NotAfter.Before(first.NotAfter) {
				first = cert
			}
		}
		if n == 0 {
			r.add(Critical, "", "%s: %s holds no certificate in PEM", f.Field, f.Path)
			continue
		}
		late := min(soon, first.NotAfter.Sub(first.NotBefore)/soonPart)
		expiry(r, f.Field+" ("+filepath.Base(f.Path)+")", first.NotAfter, late, "put a new one into "+f.Path)
	}
	s.obtained(r)
}

// obtained looks at the certificates that the live node serves. Which of them
// should have been renewed, by the life of each, the node itself knows.
func (s *Subject) obtained(r *Report) {
	const prefix = `sluice_certs_expiry_timestamp_seconds{domain="`
	for line := range strings.Lines(s.Live) {
		rest, is := strings.CutPrefix(line, prefix)
		name, value, ok := strings.Cut(rest, `"} `)
		if unix, err := strconv.ParseFloat(strings.TrimSpace(value), 64); is && ok && err == nil {
			expiry(r, name, time.Unix(int64(unix), 0), 0, "sluice certs show '"+name+"' says what keeps it from being renewed")
		}
		const late = `sluice_certs_domains{state="expiring"} `
		if value, is := strings.CutPrefix(line, late); is && strings.TrimSpace(value) != "0" {
			r.add(Warning, "sluice certs ls names them, and sluice certs show NAME says what keeps one from being renewed",
				"certificates have not been renewed though a fifth of their life is left, or less: %s", strings.TrimSpace(value))
		}
	}
}

// expiry tells of a certificate that ends at a time, which is late if less than
// that is left.
func expiry(r *Report, name string, at time.Time, late time.Duration, mend string) {
	left := time.Until(at)
	switch {
	case left <= 0:
		r.add(Critical, mend, "the certificate of %s has expired at %s", name, at.UTC().Format(time.DateTime))
	case left < late:
		r.add(Warning, mend, "the certificate of %s expires in %s", name, days(left))
	default:
		r.ok("the certificate of %s holds for %s", name, days(left))
	}
}

// days says how long d is, in hours where that is less than two days.
func days(d time.Duration) string {
	if d < 48*time.Hour {
		return fmt.Sprintf("%d hours", int(d/time.Hour))
	}
	return fmt.Sprintf("%d days", int(d/(24*time.Hour)))
}

func checkNode(ctx context.Context, s *Subject, r *Report) {
	if s.Live == "" {
		r.add(Note, "", "no node answers at %s: what a live one knows is not looked at", s.Config.Admin)
		return
	}
	status, body, err := get(ctx, "http://"+s.Config.Admin+"/readyz")
	switch {
	case err != nil:
		r.unknown("whether the node is ready: %v", err)
	case status != 200:
		r.add(Critical, "see \"/readyz says 503\" in OPERATIONS.md", "the node is not ready: %s", strings.TrimSpace(body))
	case strings.Contains(body, `"detail"`):
		r.add(Warning, "see OPERATIONS.md", "the node serves, and something is amiss: %s", strings.TrimSpace(body))
	default:
		r.ok("the node is ready")
	}
	for _, of := range []struct{ metric, what string }{
		{"sluice_control_refused_keys", "keys are refused"}, {"sluice_proxy_closed_ports", "mapped ports cannot be opened"},
	} {
		if v, ok := s.metric(of.metric); ok && v != "0" {
			r.add(Warning, "sluice status", "%s %s", v, of.what)
		}
	}
}
