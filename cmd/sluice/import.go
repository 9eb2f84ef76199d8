package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/remotegpu/sluice/cmd/sluice/nginx"
	"github.com/remotegpu/sluice/control/keys"
	"github.com/remotegpu/sluice/router"
)

func newImportCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "import",
		Short: "Turn the configuration of other proxies into keys",
		Args:  cobra.ArbitraryArgs,
		RunE:  wantsCommand,
	}
	cmd.AddCommand(newImportNginxCommand())
	return cmd
}

// importer is one run of sluice import nginx.
type importer struct {
	change changeFlags
	root   string
	to     string
	apply  bool
	strict bool
	all    bool
	pools  []string
}

func newImportNginxCommand() *cobra.Command {
	var cf clusterFlags
	f := importer{change: changeFlags{clusterFlags: &cf}}
	cmd := &cobra.Command{
		Use:   "nginx FILE|DIR",
		Short: "Turn nginx's files into keys, and say what could not be carried over",
		Long: `Import reads a configuration of nginx, its stream and its HTTP servers with all
files that it includes, and writes the keys that do the same, as sluice apply
takes them. On standard error stands, with file and line, what was lost and what
differs, and what to do about it by hand; where something that keeps requests
away could not be carried over, no route is made, lest everybody get in. With --to
keys and notes become files of a directory, and so do the fields that sluice.yaml
should have. With --dry-run etcd is compared and nothing written, with --apply the
keys are written. The same files make the same keys every time.`,
		Example: `  sluice import nginx /etc/nginx --to keys/ && sluice apply -f keys/ --dry-run
  sluice import nginx copy/nginx.conf | sluice check -
  sluice import nginx /etc/nginx --pool ssh=50000-54999 --apply`,
		Args: cobra.ExactArgs(1),
		RunE: f.run,
	}
	cf.addBoth(cmd)
	f.change.add(cmd)
	cmd.Flags().StringVar(&f.root, "root", "/etc/nginx", "where nginx has its files; what lies below is looked for beside FILE")
	cmd.Flags().StringVar(&f.to, "to", "", "write files into this directory, rather than keys to standard output")
	cmd.Flags().BoolVar(&f.apply, "apply", false, "write the keys, and wait for the nodes' verdicts")
	cmd.Flags().BoolVar(&f.strict, "strict", false, "fail, and write nothing, if anything was lost")
	cmd.Flags().BoolVar(&f.all, "all", false, "tell also of what Sluice does by itself or has no use for")
	cmd.Flags().StringArrayVar(&f.pools, "pool", nil, "make a pool of a service's ports, such as ssh=50000-54999; several times for several")
	return cmd
}

func (f *importer) run(cmd *cobra.Command, args []string) error {
	if err := f.change.check(); err != nil {
		return err
	}
	directives, err := nginx.Load(args[0], f.root)
	if err != nil {
		return usageError{err}
	}
	result := nginx.Convert(directives)
	if err := f.addPools(result); err != nil {
		return usageError{err}
	}
	lost := f.settle(result)
	if f.change.json() && !f.apply && !f.change.dryRun && f.to == "" {
		err = f.change.write(cmd.OutOrStdout(), result, nil)
	} else {
		f.tell(cmd.ErrOrStderr(), result.Notes)
	}
	if err != nil {
		return err
	}
	if f.strict && lost > 0 {
		return fmt.Errorf("%s of %s could not be carried over", counted(lost, "directive"), args[0])
	}
	switch {
	case f.to != "":
		if err := f.write(result); err != nil {
			return err
		}
	case !f.change.json() && !f.apply && !f.change.dryRun:
		if _, err := cmd.OutOrStdout().Write(keysYAML(result.Keys, args[0])); err != nil {
			return err
		}
	}
	if f.apply || f.change.dryRun {
		return f.change.withPlane(func(cmd *cobra.Command, _ []string, p plane) error {
			return f.change.change(cmd, p, wishesOf(result.Keys), nil)
		})(cmd, args)
	}
	return nil
}

func wishesOf(all []nginx.Key) []keys.Wish {
	wishes := make([]keys.Wish, len(all))
	for i, k := range all {
		wishes[i] = keys.Wish{Key: k.Key, Value: string(k.Value)}
	}
	return wishes
}

// settle takes out what nodes would refuse of all keys together, such as a route
// that leads to the node itself, and returns how much was lost.
func (f *importer) settle(r *nginx.Result) (lost int) {
	for _, finding := range keys.Check(everyPort, wishesOf(r.Keys)) {
		i := slices.IndexFunc(r.Keys, func(k nginx.Key) bool { return k.Key == finding.Key })
		if i < 0 {
			continue
		}
		r.Notes = append(r.Notes, nginx.Note{Kind: nginx.Lost, File: r.Keys[i].File, Line: r.Keys[i].Line, Directive: finding.Key,
			Why: "nodes refuse it: " + finding.Why, Todo: "write the key by hand"})
		r.Keys = slices.Delete(r.Keys, i, i+1)
	}
	for _, n := range r.Notes {
		if n.Kind == nginx.Lost {
			lost++
		}
	}
	return lost
}

// addPools adds the pools that the flags ask for.
func (f *importer) addPools(r *nginx.Result) error {
	for _, flag := range f.pools {
		service, text, ok := strings.Cut(flag, "=")
		ports, err := router.ParsePorts(text)
		if !ok || err != nil {
			return fmt.Errorf("--pool %q: write a service and its ports, such as ssh=50000-54999", flag)
		}
		if _, err := router.ParseKey("pools/" + service); err != nil {
			return fmt.Errorf("--pool %q: %w", flag, err)
		}
		votes := map[int]int{}
		for _, k := range r.Keys {
			key, err := router.ParseKey(k.Key)
			if err != nil || key.Kind != router.KindMapping || !ports.Contains(key.Port) {
				continue
			}
			if m, err := router.ParseMapping(key.Proto, key.Port, k.Value); err == nil && m.Service == service && len(m.Backend.Targets) == 1 {
				votes[portOf(m.Backend.Targets[0].Address.String())]++
			}
		}
		delete(votes, 0)
		if len(votes) == 0 {
			return fmt.Errorf("--pool %q: no port among these is one of %s, by the comments at its server; so nobody knows where the service listens", flag, service)
		}
		var most int
		for _, port := range slices.Sorted(maps.Keys(votes)) {
			if votes[port] > votes[most] {
				most = port
			}
		}
		value, err := json.Marshal(struct {
			Ports   string `json:"ports"`
			Backend int    `json:"backend_port"`
		}{text, most})
		if err != nil {
			return err
		}
		r.Keys = append(r.Keys, nginx.Key{Key: "pools/" + service, Value: value, File: "--pool", Line: 0})
	}
	return nil
}

// portOf returns the port of host:port, or 0.
func portOf(address string) int {
	_, text, _ := strings.Cut(address[strings.LastIndexByte(address, ']')+1:], ":")
	port, err := router.ParsePort(text)
	if err != nil {
		return 0
	}
	return port
}

// tell writes the notes for a person.
func (f *importer) tell(w io.Writer, notes []nginx.Note) {
	count := map[nginx.Kind]int{}
	for _, n := range notes {
		if count[n.Kind]++; n.Kind != nginx.Unneeded || f.all {
			fmt.Fprintln(w, printable(n.String()))
		}
	}
	fmt.Fprintf(w, "%d lost, %d that differ, %d that Sluice does by itself or has no use for", count[nginx.Lost], count[nginx.Differs], count[nginx.Unneeded])
	if !f.all && count[nginx.Unneeded] > 0 {
		fmt.Fprint(w, " (--all tells of them)")
	}
	fmt.Fprintln(w)
}

// importHead begins the files that import writes, by which it knows its own.
const importHead = "# Made by sluice import nginx"

// keysYAML writes keys as sluice apply reads them.
func keysYAML(all []nginx.Key, from string) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s of %s.\n", importHead, printable(from))
	for _, k := range all {
		var value yaml.Node
		if err := yaml.Unmarshal(k.Value, &value); err != nil {
			panic(err) // JSON is YAML
		}
		block(value.Content[0])
		text, err := yaml.Marshal(&yaml.Node{Kind: yaml.MappingNode, HeadComment: printable(whence(k)), Content: []*yaml.Node{
			{Kind: yaml.ScalarNode, Value: k.Key}, value.Content[0],
		}})
		if err != nil {
			panic(err) // as above
		}
		b.WriteByte('\n')
		b.Write(text)
	}
	return b.Bytes()
}

// block has the values of n written on lines of their own.
func block(n *yaml.Node) {
	if n.Kind == yaml.MappingNode {
		n.Style = 0
	}
	for i, sub := range n.Content {
		if n.Kind == yaml.MappingNode && i%2 == 0 {
			sub.Style = 0
		}
		if n.Kind == yaml.MappingNode && sub.Kind == yaml.MappingNode {
			block(sub)
		}
	}
}

// write makes the files of --to. What it made before and has no content any more
// goes; files of others are not touched.
func (f *importer) write(r *nginx.Result) error {
	if err := os.MkdirAll(f.to, 0o755); err != nil {
		return err
	}
	var notes strings.Builder
	fmt.Fprintf(&notes, "%s.\n\n", importHead)
	for _, n := range r.Notes {
		fmt.Fprintln(&notes, printable(n.String()))
	}
	files := map[string][]byte{
		"notes.txt":        []byte(notes.String()),
		"sluice.yaml.part": []byte(importHead + ": what sluice.yaml should have.\n" + r.Node.YAML()),
	}
	for _, folder := range []string{"ports/", "routes/", "domains/", "pools/"} {
		var some []nginx.Key
		for _, k := range r.Keys {
			if strings.HasPrefix(k.Key, folder) {
				some = append(some, k)
			}
		}
		name := strings.TrimSuffix(folder, "/") + ".yaml"
		if files[name] = nil; len(some) > 0 {
			files[name] = keysYAML(some, "nginx's files")
		}
	}
	for _, name := range sortedKeys(files) {
		if err := replaceOwn(filepath.Join(f.to, name), files[name]); err != nil {
			return err
		}
	}
	return nil
}

// replaceOwn writes a file of ours, or removes it where there is no text.
func replaceOwn(path string, text []byte) error {
	before, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && text == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case !bytes.HasPrefix(before, []byte(importHead)):
		return fmt.Errorf("%s is not a file that this command made; move it away, or name another directory", path)
	case text == nil:
		return os.Remove(path)
	}
	return os.WriteFile(path, text, 0o644)
}

// whence is where a key comes from, for people.
func whence(k nginx.Key) string {
	if k.Line == 0 {
		return k.File // a flag
	}
	return fmt.Sprintf("%s:%d", k.File, k.Line)
}
