package main

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/remotegpu/sluice/cmd/sluice/config"
	"github.com/remotegpu/sluice/control/keys"
)

func newCheckCommand() *cobra.Command {
	var path string
	var out outputFlag
	cmd := &cobra.Command{
		Use:   "check [FILE|DIR|-]...",
		Short: "Check the node's file, or files of keys, without starting or writing anything",
		Long: `Check without arguments reads sluice.yaml and goes through everything that run
does before its first system call: fields, addresses, DNS providers and their
credentials' form. With arguments it reads files of keys, as sluice apply does,
and says what nodes would refuse of them if there were no other keys; with
--config too, mappings have to be within the ports of that file. It asks neither
etcd nor any node: to check against the keys that there are, use --dry-run of
the commands that write. It exits with 0 if all is good, else with 2.`,
		Example: `  sluice check --config /etc/sluice/sluice.yaml
  sluice check keys/
  echo 'routes/a: {host: a.example.com, backend: "10.0.0.1:80"}' | sluice check -`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := out.check(); err != nil {
				return err
			}
			if len(args) == 0 {
				return checkNodeFile(cmd.OutOrStdout(), path, &out)
			}
			f := clusterFlags{outputFlag: out}
			if cmd.Flags().Changed("config") {
				f.file = path
			}
			return f.checkKeys(cmd, args)
		},
	}
	addConfigFlag(cmd, &path)
	out.add(cmd)
	return cmd
}

func checkNodeFile(w io.Writer, path string, out *outputFlag) error {
	c, err := loadConfig(path)
	if err != nil {
		return err
	}
	good := struct {
		File  string   `json:"file"`
		Node  string   `json:"node"`
		HTTPS []string `json:"https"`
		HTTP  []string `json:"http"`
		Ports string   `json:"ports"`
		Admin string   `json:"admin"`
	}{path, c.Node, addressesOf(c.Listeners.HTTPS), addressesOf(c.Listeners.HTTP), fmt.Sprint(c.Ports), c.Admin}
	return out.write(w, good, func(w io.Writer) {
		fmt.Fprintf(w, "%s is good: node %s, https %v, http %v, ports %v, admin %s\n",
			path, c.Node, c.Listeners.HTTPS, c.Listeners.HTTP, c.Ports, c.Admin)
	})
}

func addressesOf(listeners []config.Listener) []string {
	all := make([]string, len(listeners))
	for i, l := range listeners {
		all[i] = l.Address
	}
	return all
}

// checkKeys checks files of keys, all together.
func (f *clusterFlags) checkKeys(cmd *cobra.Command, paths []string) error {
	all, err := keys.ReadFiles(paths, cmd.InOrStdin())
	if err != nil {
		return usageError{err}
	}
	node := &config.Config{Ports: everyPort}
	if f.file != "" {
		if node, err = loadConfig(f.file); err != nil {
			return err
		}
	}
	found := keys.Check(node.Ports, all)
	err = f.outputFlag.list(cmd.OutOrStdout(), len(found), func(i int) any { return found[i] }, func(w io.Writer) {
		for _, finding := range found {
			fmt.Fprintf(w, "! %s\trefused: %s\n", printable(finding.Key), printable(finding.Why))
		}
		if len(found) == 0 {
			fmt.Fprintf(w, "%s, nothing amiss\n", counted(len(all), "key"))
		}
	})
	if err == nil && len(found) > 0 {
		err = usageError{fmt.Errorf("nodes would refuse %d of %s", len(found), counted(len(all), "key"))}
	}
	return err
}

func addConfigFlag(cmd *cobra.Command, path *string) {
	cmd.Flags().StringVarP(path, "config", "c", "sluice.yaml", "the node's file")
}

func loadConfig(path string) (*config.Config, error) {
	c, err := config.Load(path, os.LookupEnv)
	if err != nil {
		return nil, usageError{err}
	}
	if member := etcdMember(c); member != nil {
		if err := member.Check(c.Node); err != nil {
			return nil, usageError{fmt.Errorf("%s: etcd.cluster: %w", path, err)}
		}
	}
	return c, nil
}
