package config

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
)

// File is a file that the node's file names.
type File struct {
	Field string // that names it
	Path  string
	// Secret says that it holds a private key.
	Secret bool
}

// Files returns the files that c names, in a fixed order, apart from the data
// directory, the pages and the access log.
func (c *Config) Files() []File {
	all := []File{
		{"cluster_key_file", c.ClusterKeyFile, true},
		{"etcd.tls.ca", c.Etcd.TLS.CA, false}, {"etcd.tls.cert", c.Etcd.TLS.Cert, false}, {"etcd.tls.key", c.Etcd.TLS.Key, true},
		{"api.cert", c.API.Cert, false}, {"api.key", c.API.Key, true}, {"api.client_ca", c.API.ClientCA, false},
		{"acme.ca_file", c.ACME.CAFile, false},
	}
	if m := c.Etcd.Cluster; m != nil {
		all = append(all, File{"etcd.cluster.tls.ca", m.TLS.CA, false}, File{"etcd.cluster.tls.cert", m.TLS.Cert, false}, File{"etcd.cluster.tls.key", m.TLS.Key, true})
	}
	for i, issuer := range c.ACME.Issuers {
		at := fmt.Sprintf("acme.issuers[%d].", i)
		all = append(all, File{at + "ca_file", issuer.CAFile, false}, File{at + "roots", issuer.Roots, false})
	}
	for _, name := range slices.Sorted(maps.Keys(c.UpstreamTLS)) {
		f, at := c.UpstreamTLS[name], "upstream_tls."+name+"."
		all = append(all, File{at + "ca", f.CA, false}, File{at + "cert", f.Cert, false}, File{at + "key", f.Key, true})
	}
	for _, name := range slices.Sorted(maps.Keys(c.PasswordFiles)) {
		all = append(all, File{"password_files." + name, c.PasswordFiles[name], false})
	}
	for _, name := range slices.Sorted(maps.Keys(c.ClientAuth)) {
		f, at := c.ClientAuth[name], "client_auth."+name+"."
		all = append(all, File{at + "ca", f.CA, false}, File{at + "crl", f.CRL, false})
	}
	return slices.DeleteFunc(all, func(f File) bool { return f.Path == "" })
}

// CheckSecrets refuses private keys that everybody on the machine can read. The
// error, a *router.FieldError, says how to mend it.
func (c *Config) CheckSecrets() error {
	for _, f := range c.Files() {
		if !f.Secret {
			continue
		}
		info, err := os.Stat(f.Path)
		if err != nil {
			continue // whoever reads it says so
		}
		if mode := info.Mode().Perm(); mode&0o007 != 0 {
			return wrong(f.Field, "everybody on the machine can use %s, which holds a private key (mode %#o): `chmod o= %s`; where a secret is mounted, mount it with mode 0400 or 0440",
				f.Path, mode, filepath.Clean(f.Path))
		}
	}
	return nil
}
