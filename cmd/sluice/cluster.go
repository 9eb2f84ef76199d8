package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/remotegpu/sluice/cmd/sluice/config"
	"github.com/remotegpu/sluice/control/etcd"
	"github.com/remotegpu/sluice/control/keys"
	"github.com/remotegpu/sluice/control/tokens"
	"github.com/remotegpu/sluice/router"
)

// defaultFile is the node's file on a machine that is one.
const defaultFile = "/etc/sluice/sluice.yaml"

// clusterFlags say which etcd a command is about, and how it answers.
type clusterFlags struct {
	file      string
	endpoints []string
	prefix    string
	api       apiFlags // of commands that can ask a node as well
	outputFlag
}

func (f *clusterFlags) add(cmd *cobra.Command) {
	flags := cmd.PersistentFlags()
	flags.StringVarP(&f.file, "config", "c", "", "take etcd, its user and certificates, and ports from a node's file (default: "+defaultFile+" if it is there)")
	flags.StringSliceVar(&f.endpoints, "endpoints", nil, "etcd's addresses (default: 127.0.0.1:2379)")
	flags.StringVar(&f.prefix, "prefix", "", "what all keys begin with (default: /sluice)")
	f.outputFlag.add(cmd)
}

// addBoth is add for commands that can ask a node's control API as well.
func (f *clusterFlags) addBoth(cmd *cobra.Command) {
	f.add(cmd)
	f.api.add(cmd)
}

// open returns the keys of the cluster. The caller closes the store's client.
func (f *clusterFlags) open(cmd *cobra.Command) (*keys.Store, error) {
	if err := f.refuseAPI(cmd); err != nil {
		return nil, err
	}
	c, err := f.node()
	if err != nil {
		return nil, err
	}
	tlsConfig, err := etcdTLS(c.Etcd.TLS)
	if err != nil {
		return nil, err
	}
	if err := reachable(cmd.Context(), c.Etcd.Endpoints, tlsConfig); err != nil {
		return nil, err
	}
	client, err := etcd.Dial(etcd.Config{
		Endpoints: c.Etcd.Endpoints, Prefix: c.Etcd.Prefix, Username: c.Etcd.Username, Password: c.Etcd.Password, TLS: tlsConfig,
	})
	if err != nil {
		return nil, usageError{err}
	}
	return &keys.Store{Client: client, Ports: c.Ports, By: whoRuns(cmd)}, nil
}

// below returns a key below the prefix, where it is given as it stands in etcd.
func (f *clusterFlags) below(key string) string {
	prefix := "/sluice"
	if c, err := f.node(); err == nil {
		prefix = strings.TrimRight(c.Etcd.Prefix, "/")
	}
	return strings.TrimPrefix(key, prefix+"/")
}

// folder returns what keys begin with that somebody is interested in, as people
// have it at hand: /sluice/ports/tcp/20022, or tcp/20022 as well. There has to be
// such a folder, lest a word that is wrong is taken for keys that nobody changed.
func (f *clusterFlags) folder(given string) (string, error) {
	prefix := f.below(given)
	for _, proto := range []string{"tcp", "udp"} {
		if prefix == proto || strings.HasPrefix(prefix, proto+"/") {
			prefix = "ports/" + prefix
		}
	}
	folders := append([]string{"envs/", "allocations/", "drain/", tokens.Folder}, pruned...)
	if slices.ContainsFunc(folders, func(known string) bool { return strings.HasPrefix(prefix, known) || strings.HasPrefix(known, prefix) }) {
		return prefix, nil
	}
	return "", usageError{fmt.Errorf("%q: no keys begin so; they begin with one of %s", given, strings.Join(folders, ", "))}
}

// withStore has run work with the keys of the cluster that the flags name.
func (f *clusterFlags) withStore(run func(cmd *cobra.Command, args []string, store *keys.Store) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if err := f.check(); err != nil {
			return err
		}
		store, err := f.open(cmd)
		if err != nil {
			return err
		}
		defer store.Client.Close()
		return run(cmd, args, store)
	}
}

// whoRuns says for the history who runs a command.
func whoRuns(cmd *cobra.Command) string {
	who, where := "uid "+strconv.Itoa(os.Getuid()), "an unnamed host"
	if u, err := user.Current(); err == nil {
		who = u.Username
	}
	if host, err := os.Hostname(); err == nil {
		where = host
	}
	return fmt.Sprintf("%s@%s: %s", who, where, cmd.CommandPath())
}

// node returns what the flags say of a node: of its file where there is one,
// else what holds where nobody says anything.
func (f *clusterFlags) node() (*config.Config, error) {
	c := &config.Config{Ports: everyPort}
	c.Etcd.Listen, c.Etcd.Prefix = "127.0.0.1:2379", "/sluice"
	path := f.file
	if path == "" {
		if _, err := os.Stat(defaultFile); !errors.Is(err, fs.ErrNotExist) {
			path = defaultFile
		}
	}
	if path != "" && (f.file != "" || len(f.endpoints) == 0) {
		var err error
		if c, err = loadConfig(path); err != nil {
			return nil, err
		}
	}
	if len(c.Etcd.Endpoints) == 0 {
		c.Etcd.Endpoints = []string{c.Etcd.Listen}
	}
	if len(f.endpoints) > 0 {
		if strings.Contains(strings.Join(f.endpoints, " "), "@") { // nor is it repeated
			return nil, usageError{errors.New("--endpoints: has a user or a password in it, which would be on the screen and in logs; give them as etcd.username and etcd.password in a file for --config")}
		}
		c.Etcd.Endpoints = f.endpoints
	}
	if f.prefix != "" {
		c.Etcd.Prefix = f.prefix
	}
	return c, nil
}

// outputFlag says whether a command writes for people or for programs.
type outputFlag struct{ format string }

func (o *outputFlag) add(cmd *cobra.Command) {
	cmd.PersistentFlags().StringVarP(&o.format, "output", "o", "text", "text, or json for programs: an object, of lists one on each line")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"text", "json"}, cobra.ShellCompDirectiveNoFileComp))
}

func (o *outputFlag) check() error {
	if o.format != "text" && o.format != "json" {
		return usageError{fmt.Errorf("--output: %q is not known; write text or json", o.format)}
	}
	return nil
}

func (o *outputFlag) json() bool { return o.format == "json" }

// write writes v as JSON, or has text written as a table.
func (o *outputFlag) write(w io.Writer, v any, text func(w io.Writer)) error {
	if o.json() {
		enc := encoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(v)
	}
	return table(w, text)
}

// list writes n items as JSON, one on each line, or has text written as a
// table.
func (o *outputFlag) list(w io.Writer, n int, item func(i int) any, text func(w io.Writer)) error {
	if !o.json() {
		return table(w, text)
	}
	enc := encoder(w)
	for i := range n {
		if err := enc.Encode(item(i)); err != nil {
			return err
		}
	}
	return nil
}

func encoder(w io.Writer) *json.Encoder {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc
}

func table(w io.Writer, text func(w io.Writer)) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	text(t)
	return t.Flush()
}

// ago writes how long a time is past.
func ago(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return shortDuration(max(time.Since(t), 0))
}

// oneLine writes a value in a table: on one line, and cut where it is long.
func oneLine(s string, most int) string {
	s = printable(strings.Join(strings.Fields(s), " "))
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most-3], "") + "..."
	}
	return s
}

// everyPort is what mappings may open where no node's file says.
var everyPort = router.Ports{{First: 1, Last: 65535}}
