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
	live       bool     // measure the time from etcdctl put to an open port
	rounds     int      // turns each contender gets at each row
	phases     phases   // of each turn
	sluice     string   // path of the binary
	results    string   // directory of the report; "": only print
	install    bool     // missing Debian packages, when root
	puts       int      // samples of the live row
	mappings   int      // present while the live row runs
	given      []string // the arguments themselves, for the report
}

// phases are the parts of one contender's turn: load runs through both, and
// only main is measured.
type phases struct {
	warm, main time.Duration
}

// liveRow is the name of the row that has no contenders but sluice.
const liveRow = "live"

// parseOptions reads the command line. It prints the usage and returns
// flag.ErrHelp where that was asked for.
func parseOptions(args []string, stdout io.Writer) (*options, error) {
	o := &options{given: args}
	var names, rowNames string
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.SetOutput(io.Discard) // errors are the caller's to print
	fs.StringVar(&names, "contenders", "nginx,haproxy,sluice", "who is measured, in this order within a round")
	fs.StringVar(&rowNames, "rows", "all", "what is measured: "+strings.Join(rowList(), ",")+"; or all")
	fs.IntVar(&o.rounds, "rounds", 5, "turns of each contender in each row")
	fs.DurationVar(&o.phases.warm, "warm", 500*time.Millisecond, "load before each measurement, not counted")
	fs.DurationVar(&o.phases.main, "time", 2500*time.Millisecond, "length of each measurement")
	fs.StringVar(&o.sluice, "sluice", "bin/sluice", "the sluice binary")
	fs.StringVar(&o.results, "results", "bench/results", "directory of the report; empty: only print the table")
	fs.BoolVar(&o.install, "install", true, "install missing Debian packages when root")
	fs.IntVar(&o.puts, "puts", 200, "how many puts the live row makes")
	fs.IntVar(&o.mappings, "mappings", 1000, "how many mappings are there while the live row runs")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			fs.SetOutput(stdout)
			fs.Usage()
		}
		return nil, err
	}
	if fs.NArg() > 0 {
		return nil, fmt.Errorf("argument %q is not understood; give flags only, see -help", fs.Arg(0))
	}
	if err := o.choose(names, rowNames); err != nil {
		return nil, err
	}
	return o, o.check()
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
		o.rows, o.live = allRows(), o.measures("sluice")
		return nil
	}
	for _, name := range strings.Split(rowNames, ",") {
		i := slices.IndexFunc(allRows(), func(r row) bool { return r.name == name })
		switch {
		case i >= 0:
			o.rows = append(o.rows, allRows()[i])
		case name == liveRow && o.measures("sluice"):
			o.live = true
		case name == liveRow:
			return fmt.Errorf("-rows: %s measures sluice, which is not among -contenders", liveRow)
		default:
			return fmt.Errorf("-rows: %q is not known; there are %s", name, strings.Join(rowList(), ", "))
		}
	}
	return nil
}

func (o *options) check() error {
	switch {
	case o.rounds < 1:
		return errors.New("-rounds: give at least 1")
	case o.phases.warm <= 0 || o.phases.main < 100*time.Millisecond:
		return errors.New("-warm must be above 0 and -time at least 100ms")
	case o.puts < 1 || o.mappings < 0 || o.puts+o.mappings > 10000:
		return errors.New("-puts must be at least 1, and -puts and -mappings together at most 10000")
	}
	return nil
}

// measures reports whether the contender is among the chosen ones.
func (o *options) measures(name string) bool {
	return slices.ContainsFunc(o.contenders, func(c contender) bool { return c.name == name })
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
	return append(names, liveRow)
}
