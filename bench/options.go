package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// options is what the command line asks for.
type options struct {
	contenders []contender
	rows       []row
	studies    []study
	rounds     int      // turns each contender gets at each row
	phases     phases   // of each turn
	sluice     string   // path of the binary
	baseline   string   // path of another one, for the contender of that name
	pgo        string   // file for a profile, gathered instead of measuring
	results    string   // directory of the report; "": only print
	install    bool     // missing Debian packages, when root
	isolate    bool     // as root, run in a network namespace of its own
	isolated   bool     // that is where it runs
	portsMode  string   // ports_mode of sluice.yaml; "": as it comes
	puts       int      // samples of the live and map40k rows
	mappings   int      // present while the live row runs
	size       int      // mappings of the map40k and edits rows
	changes    int      // edits of map40k, each followed to its end
	edits      int      // of the edits row
	sessions   int      // that live through them
	relays     int      // of the idle row
	keepAlive  int      // connections of the idle-https row
	streams    int      // of the stream row, each way
	reload     int      // ports of the reload row
	upgrades   int      // of the upgrades row
	envs       int      // environments of the envs row
	nodes      int      // of the swarm row
	faults     int      // of nodes, of the dns row
	certs      int      // names of the certs row
	million    int      // mappings of the table1m row
	given      []string // the arguments themselves, for the report
}

// phases are the parts of one contender's turn: load runs through both, and
// only main is measured.
type phases struct {
	warm, main time.Duration
}

// quickValues are what -quick stands for: enough to see that everything works,
// not enough to believe the figures.
func quickValues() map[string]string {
	return map[string]string{
		"rounds": "1", "warm": "200ms", "time": "500ms", "puts": "20", "mappings": "200", "size": "2000",
		"changes": "200", "edits": "500", "sessions": "50", "relays": "500", "keep-alive": "300", "streams": "20", "reload": "500", "envs": "300", "nodes": "20", "upgrades": "3", "faults": "4", "certs": "500", "million": "100000",
	}
}

// parseOptions reads the command line. It prints the usage and returns
// flag.ErrHelp where that was asked for.
func parseOptions(args []string, stdout io.Writer) (*options, error) {
	o := &options{given: args}
	var names, rowNames string
	var quick bool
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.SetOutput(io.Discard) // errors are the caller's to print
	fs.StringVar(&names, "contenders", "nginx,haproxy,caddy,nginx-h3,sluice", "who is measured, in this order within a round")
	fs.StringVar(&rowNames, "rows", "all", "what is measured: "+strings.Join(rowList(), ",")+"; or all")
	fs.IntVar(&o.rounds, "rounds", 5, "turns of each contender in each row")
	fs.DurationVar(&o.phases.warm, "warm", 300*time.Millisecond, "load before each measurement, not counted")
	fs.DurationVar(&o.phases.main, "time", time.Second, "length of each measurement")
	fs.StringVar(&o.sluice, "sluice", "bin/sluice", "the sluice binary")
	fs.StringVar(&o.baseline, "baseline", "", "another sluice binary, the contender \"baseline\": -contenders baseline,sluice compares two builds")
	fs.StringVar(&o.pgo, "pgo", "", "instead of measuring, gather a CPU profile of sluice for the compiler into this file")
	fs.StringVar(&o.results, "results", "bench/results", "directory of the report; empty: only print the table")
	fs.BoolVar(&o.install, "install", true, "install missing Debian packages when root")
	fs.BoolVar(&o.isolate, "isolate", true, "as root, run in a network namespace of its own")
	fs.BoolVar(&quick, "quick", false, "see in minutes whether everything works; other flags still count")
	fs.StringVar(&o.portsMode, "ports-mode", "", "ports_mode of sluice's configuration: auto, bind or steer; empty: as it comes")
	o.sizeFlags(fs)
	quickened := quickValues()
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			fs.SetOutput(stdout)
			fs.Usage()
		}
		return nil, err
	}
	if quick {
		fs.Visit(func(f *flag.Flag) { delete(quickened, f.Name) })
		for name, value := range quickened {
			if err := fs.Set(name, value); err != nil {
				return nil, err
			}
		}
	}
	if fs.NArg() > 0 {
		return nil, fmt.Errorf("argument %q is not understood; give flags only, see -help", fs.Arg(0))
	}
	if o.pgo != "" {
		names = judged
		if rowNames == "all" {
			rowNames = pgoRows
		}
	}
	if err := o.choose(names, rowNames); err != nil {
		return nil, err
	}
	return o, o.check()
}

// sizeFlags defines how large the rows are that have a size.
func (o *options) sizeFlags(fs *flag.FlagSet) {
	fs.IntVar(&o.puts, "puts", 200, "how many puts the live and map40k rows follow to the open port")
	fs.IntVar(&o.mappings, "mappings", 1000, "how many mappings are there while the live row runs")
	fs.IntVar(&o.size, "size", 40000, "how many mappings the map40k and edits rows load")
	fs.IntVar(&o.changes, "changes", 2000, "how many edits the map40k row takes the CPU time of")
	fs.IntVar(&o.edits, "edits", 10000, "how many edits the edits row makes")
	fs.IntVar(&o.sessions, "sessions", 500, "how many sessions live through the edits row")
	fs.IntVar(&o.relays, "relays", 10000, "how many idle relays the idle row holds, where the limit of open files allows")
	fs.IntVar(&o.keepAlive, "keep-alive", 5000, "how many connections the idle-https row holds")
	fs.IntVar(&o.streams, "streams", 200, "how many event streams the stream row opens each way")
	fs.IntVar(&o.reload, "reload", 9000, "how many ports nginx has in the reload row")
	fs.IntVar(&o.nodes, "nodes", 200, "how many nodes the swarm row runs, all in one process")
	fs.IntVar(&o.upgrades, "upgrades", upgradesTimes, "how often the upgrades row replaces the node")
	fs.IntVar(&o.envs, "envs", envsMost, "how many environments the envs row creates")
	fs.IntVar(&o.faults, "faults", 24, "how many faults of nodes the dns row has, one after the other")
	fs.IntVar(&o.certs, "certs", 10000, "how many names with certificates the certs row has")
	fs.IntVar(&o.million, "million", 1000000, "how many mappings the table1m row has")
}

// choose fills in the contenders and rows that are named.
func (o *options) choose(names, rowNames string) error {
	for _, name := range strings.Split(names, ",") {
		i := slices.IndexFunc(allContenders(), func(c contender) bool { return c.name == name })
		if i < 0 {
			return fmt.Errorf("-contenders: %q is not known; there are %s", name, strings.Join(contenderList(), ", "))
		}
		if slices.ContainsFunc(o.contenders, func(c contender) bool { return c.name == name }) {
			return fmt.Errorf("-contenders: %q is named twice", name)
		}
		o.contenders = append(o.contenders, allContenders()[i])
	}
	if rowNames == "all" {
		o.rows = allRows()
		for _, s := range allStudies() {
			if s.possible(o) == nil {
				o.studies = append(o.studies, s)
			}
		}
		return nil
	}
	for _, name := range strings.Split(rowNames, ",") {
		if i := slices.IndexFunc(allRows(), func(r row) bool { return r.name == name }); i >= 0 {
			o.rows = append(o.rows, allRows()[i])
			continue
		}
		i := slices.IndexFunc(allStudies(), func(s study) bool { return s.name == name })
		if i < 0 {
			return fmt.Errorf("-rows: %q is not known; there are %s", name, strings.Join(rowList(), ", "))
		}
		if err := allStudies()[i].possible(o); err != nil {
			return err
		}
		o.studies = append(o.studies, allStudies()[i])
	}
	return nil
}

func (o *options) check() error {
	switch {
	case o.rounds < 1:
		return errors.New("-rounds: give at least 1")
	case o.measures(baselineName) != (o.baseline != ""):
		return errors.New("the contender baseline and the flag -baseline need each other")
	case o.phases.warm <= 0 || o.phases.main < 100*time.Millisecond:
		return errors.New("-warm must be above 0 and -time at least 100ms")
	case o.puts < 1 || o.mappings < 0 || o.puts+o.mappings > 10000:
		return errors.New("-puts must be at least 1, and -puts and -mappings together at most 10000")
	case o.size < 1 || o.size > mostMappings:
		return fmt.Errorf("-size must be from 1 to %d", mostMappings)
	case o.sessions < 1 || o.sessions > o.size:
		return errors.New("-sessions must be from 1 to -size: each has a mapping of its own")
	case o.nodes < 3 || o.nodes > swarmMost:
		return fmt.Errorf("-nodes must be from 3 to %d", swarmMost)
	case o.upgrades < 1 || o.upgrades > upgradesTimes:
		return fmt.Errorf("-upgrades must be from 1 to %d", upgradesTimes)
	case o.envs < 1 || o.envs > envsMost:
		return fmt.Errorf("-envs must be from 1 to %d", envsMost)
	case o.faults < 1:
		return errors.New("-faults must be at least 1")
	case o.keepAlive < 1 || o.streams < 1:
		return errors.New("-keep-alive and -streams must be at least 1")
	case o.certs <= certsFew:
		return fmt.Errorf("-certs must be above %d, which they are compared with", certsFew)
	case o.changes < 1 || o.edits < 1 || o.relays < 1 || o.reload < 1 || o.million < 1:
		return errors.New("-changes, -edits, -relays, -reload and -million must be at least 1")
	}
	return nil
}

// measures reports whether the contender is among the chosen ones.
func (o *options) measures(name string) bool {
	return slices.ContainsFunc(o.contenders, func(c contender) bool { return c.name == name })
}

// withPorts returns the chosen contenders that proxy TCP.
func (o *options) withPorts() []contender {
	return slices.DeleteFunc(slices.Clone(o.contenders), func(c contender) bool { return c.web })
}

// withHTTPS returns the chosen contenders that serve TLS over TCP.
func (o *options) withHTTPS() []contender {
	return slices.DeleteFunc(slices.Clone(o.contenders), func(c contender) bool { return c.name == nginxH3Name })
}

// tools returns what has to be installed for the chosen contenders and rows.
func (o *options) tools() []tool {
	var all []tool
	for _, c := range o.contenders {
		all = append(all, c.tools...)
	}
	for _, r := range o.rows {
		all = append(all, r.tools...)
	}
	for _, s := range o.studies {
		all = append(all, s.tools...)
	}
	return all
}

func contenderList() []string {
	var names []string
	for _, c := range allContenders() {
		names = append(names, c.name)
	}
	return names
}

func rowList() []string {
	var names []string
	for _, r := range allRows() {
		names = append(names, r.name)
	}
	for _, s := range allStudies() {
		names = append(names, s.name)
	}
	return names
}
