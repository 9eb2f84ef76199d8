package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/remotegpu/sluice/control/api/client"
)

// apiFlags say which control API a command asks, if any, and as whom.
type apiFlags struct {
	url, tokenFile, ca, cert, key string
}

// The environment variables that stand for flags.
const (
	envAPI       = "SLUICE_API"
	envToken     = "SLUICE_TOKEN"
	envTokenFile = "SLUICE_TOKEN_FILE"
)

func (a *apiFlags) add(cmd *cobra.Command) {
	flags := cmd.PersistentFlags()
	flags.StringVar(&a.url, "api", "", "ask the control API of a node rather than etcd: https://host:port, http://127.0.0.1:9180 or unix:///path (default: $"+envAPI+")")
	flags.StringVar(&a.tokenFile, "token-file", "", "file of the token to ask it with (default: $"+envToken+" is one, or $"+envTokenFile+" names a file)")
	flags.StringVar(&a.ca, "api-ca", "", "PEM file of who signs its certificate (default: the system's authorities)")
	flags.StringVar(&a.cert, "api-cert", "", "PEM file of a client certificate in the place of a token")
	flags.StringVar(&a.key, "api-key", "", "PEM file of that certificate's key")
}

// saysEtcd reports whether a flag says which etcd is meant.
func (f *clusterFlags) saysEtcd() bool { return f.file != "" || len(f.endpoints) > 0 || f.prefix != "" }

// where returns the URL of the API that is to be asked; "": none is.
func (a *apiFlags) where(f *clusterFlags) string {
	if a.url == "" && !f.saysEtcd() {
		return os.Getenv(envAPI)
	}
	return a.url
}

func (a *apiFlags) asked(f *clusterFlags) bool { return a.where(f) != "" }

func (a *apiFlags) check(f *clusterFlags) error {
	switch {
	case a.url != "" && f.saysEtcd():
		return usageError{errors.New("--api asks a node, and --config, --endpoints and --prefix are about etcd; give one or the other")}
	case (a.cert == "") != (a.key == ""):
		return usageError{errors.New("--api-cert and --api-key go together")}
	case !a.asked(f) && *a != (apiFlags{}):
		return usageError{errors.New("--token-file, --api-ca, --api-cert and --api-key are for --api; say which node to ask")}
	}
	return nil
}

// refuseAPI refuses commands that work with etcd alone where somebody means a node's
// API, which may be of another cluster.
func (f *clusterFlags) refuseAPI(cmd *cobra.Command) error {
	if os.Getenv(envAPI) != "" && !f.saysEtcd() {
		return usageError{fmt.Errorf("%s works with etcd itself, and $%s names a node's API: say which etcd by --endpoints or --config", cmd.CommandPath(), envAPI)}
	}
	return nil
}

// dial returns a client of the API. The caller closes it.
func (a *apiFlags) dial() (*client.Client, error) { return a.dialTo(a.where(&clusterFlags{})) }

func (a *apiFlags) dialTo(url string) (*client.Client, error) {
	cfg := client.Config{URL: url, TokenFile: a.tokenFile, UserAgent: "sluice/" + versionString()}
	if cfg.TokenFile == "" {
		if cfg.Token = os.Getenv(envToken); cfg.Token == "" {
			cfg.TokenFile = os.Getenv(envTokenFile)
		}
	}
	if a.cert != "" && a.tokenFile == "" {
		cfg.Token, cfg.TokenFile = "", "" // it was said otherwise
	}
	t, err := a.tls()
	if err != nil {
		return nil, usageError{err}
	}
	cfg.TLS = t
	c, err := client.New(cfg)
	if err != nil {
		return nil, usageError{err}
	}
	return c, nil
}

// tls returns nil where the system's defaults do.
func (a *apiFlags) tls() (*tls.Config, error) {
	if a.ca == "" && a.cert == "" {
		return nil, nil
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	if a.ca != "" {
		pem, err := os.ReadFile(a.ca)
		if err != nil {
			return nil, fmt.Errorf("--api-ca: %w", err)
		}
		if t.RootCAs = x509.NewCertPool(); !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("--api-ca: %s holds no PEM certificate", a.ca)
		}
	}
	if a.cert != "" {
		pair, err := tls.LoadX509KeyPair(a.cert, a.key)
		if err != nil {
			return nil, fmt.Errorf("--api-cert: %w", err)
		}
		t.Certificates = []tls.Certificate{pair}
	}
	return t, nil
}
