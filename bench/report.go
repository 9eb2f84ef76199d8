package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// publish prints the table and writes the report, the raw figures and the chart
// to dir, unless dir is "".
func publish(r *result, dir string, stdout io.Writer) error {
	fmt.Fprintf(stdout, "\n%s\n", r.summary())
	if dir == "" {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	name := r.fileName()
	raw, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	files := []struct {
		extension string
		content   []byte
	}{
		{".md", []byte(r.markdown(name + ".svg"))},
		{".json", append(raw, '\n')},
		{".svg", chart(r)},
	}
	for _, f := range r.findings() {
		if p, ok := f.(interface{ picture() (string, []byte) }); ok {
			suffix, svg := p.picture()
			files[0].content = fmt.Appendf(files[0].content, "\n![%s](%s)\n", strings.TrimPrefix(suffix, "-"), name+suffix+".svg")
			files = append(files, struct {
				extension string
				content   []byte
			}{suffix + ".svg", svg})
		}
	}
	for _, f := range files {
		path := filepath.Join(dir, name+f.extension)
		if err := os.WriteFile(path, f.content, 0o644); err != nil {
			return err
		}
		fmt.Fprintln(stdout, "wrote", path)
	}
	return nil
}

// fileName is the results' name without extension: the day and the revision.
func (r *result) fileName() string {
	return r.Time.Format("2006-01-02") + "-" + r.Machine.Revision
}

// summary is the table, the lines below it and what failed.
func (r *result) summary() string {
	var b strings.Builder
	b.WriteString(r.table())
	for _, f := range r.findings() {
		fmt.Fprintf(&b, "\n%s", f.section())
	}
	b.WriteString(r.barTable())
	for _, f := range r.failures() {
		fmt.Fprintf(&b, "\n**FAILED** %s\n", f)
	}
	return b.String()
}

// table is Markdown that is readable as it stands, too.
func (r *result) table() string {
	if len(r.Rows) == 0 {
		return ""
	}
	ref := r.referenceName()
	cells := [][]string{{"work", "contender", "CPU", "ratio to " + ref, "(least–greatest)", "rate", "p50", "p99", "p99 ratio"}}
	for _, row := range r.Rows {
		title, ref := row.Title, r.referenceOf(row)
		if ref != r.referenceName() {
			title += " (ratios to " + ref + ")"
		}
		if row.Offered > 0 {
			title += fmt.Sprintf(": %s %s", figure(row.Offered), row.Rate)
		}
		if len(row.failures(r.Contenders)) > 0 {
			title += " **FAILED**"
		}
		for _, l := range row.lines(r.Contenders, ref) {
			cells = append(cells, []string{
				title, l.contender,
				figure(l.cost) + " " + row.Cost,
				times(l.ratio.median), "(" + times(l.ratio.min) + "–" + times(l.ratio.max) + ")",
				figure(l.rate) + " " + row.Rate,
				latency(l.p50), latency(l.p99), times(l.ratio99.median),
			})
			title = ""
		}
		if title != "" { // nobody has a line
			cells = append(cells, []string{title, "", "", "", "", "", "", "", ""})
		}
	}
	return align(cells)
}

// align writes a Markdown table whose columns line up; the first two are text.
func align(cells [][]string) string {
	width := make([]int, len(cells[0]))
	for _, line := range cells {
		for i, c := range line {
			width[i] = max(width[i], len([]rune(c)), 3)
		}
	}
	var b bytes.Buffer
	for n, line := range cells {
		for i, c := range line {
			pad := strings.Repeat(" ", width[i]-len([]rune(c)))
			if i < 2 {
				c += pad
			} else {
				c = pad + c
			}
			b.WriteString("| " + c + " ")
		}
		b.WriteString("|\n")
		if n > 0 {
			continue
		}
		for i, w := range width {
			if i < 2 {
				b.WriteString("| " + strings.Repeat("-", w) + " ")
			} else {
				b.WriteString("| " + strings.Repeat("-", w-1) + ": ")
			}
		}
		b.WriteString("|\n")
	}
	return b.String()
}

// figure writes a number with three significant digits, whole if above 100.
func figure(v float64) string {
	switch a := math.Abs(v); {
	case math.IsNaN(v):
		return "–"
	case a >= 100:
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}

func times(v float64) string {
	if math.IsNaN(v) {
		return "–"
	}
	return fmt.Sprintf("%.2f×", v)
}

func latency(us float64) string {
	switch {
	case us == 0:
		return "–"
	case us >= 1000:
		return fmt.Sprintf("%.2f ms", us/1000)
	}
	return fmt.Sprintf("%.0f µs", us)
}

// markdown is the whole report.
func (r *result) markdown(chartFile string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Measured on %s at %s\n\n", r.Time.Format("2006-01-02"), r.Machine.Revision)
	b.WriteString(r.summary())
	if len(r.Rows) > 0 {
		fmt.Fprintf(&b, "\n![CPU time per unit of work as ratios to %s](%s)\n", r.referenceName(), chartFile)
	}
	fmt.Fprintf(&b, "\n## How\n\n%s", r.how())
	b.WriteString("\n## Where\n\n")
	for _, item := range r.where() {
		fmt.Fprintf(&b, "- %s\n", item)
	}
	return b.String()
}

func (r *result) how() string {
	var b strings.Builder
	if len(r.Rows) > 0 {
		fmt.Fprintf(&b, `%d rounds in which %s take turns; each turn is %.1f s of load, then %.1f s that are
measured. CPU is user and system time of the contender's whole process tree, for
each unit of work in that time. Ratios, of latencies too, are taken within a round;
the table shows the medians of the rounds. Load, contenders and origin share this
machine's loopback and cores, so rates tell less than CPU time. The origin answers
%d bytes of body; TLS is with an ECDSA P-256 certificate; nobody writes an access
log. The contenders' configurations are in bench/*.tmpl.
`, len(r.Rows[0].Rounds), strings.Join(r.Contenders, ", "), r.Warm, r.Main, bodySize)
	}
	if len(r.findings()) > 0 {
		b.WriteString(`
What is not in the first table has processes of its own, which begin and end with
it. Memory is resident memory of the process tree (smaps_rollup) once twelve
readings in three seconds lie within one per cent; sluice is told to collect its
garbage before, as it does by itself within two minutes. A port is polled without a
rest longer than 0.1 ms.
`)
	}
	return b.String()
}

// where lists the machine and the versions.
func (r *result) where() []string {
	m := r.Machine
	items := []string{
		fmt.Sprintf("CPU: %s, %d cores; memory: %s", m.CPU, m.Cores, m.MemoryGB),
		fmt.Sprintf("%s, kernel %s, load average before: %s", m.OS, m.Kernel, m.Load),
		fmt.Sprintf("%s, GOMAXPROCS %d, environment: %s", m.Go, m.MaxProcs, orNone(m.Env)),
		"git revision: " + m.Revision,
		"flags: " + orNone(r.Flags),
	}
	names := make([]string, 0, len(r.Versions))
	for name := range r.Versions {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		items = append(items, name+": "+r.Versions[name])
	}
	for _, name := range r.Contenders {
		if rest, ok := r.Rest[name]; ok {
			items = append(items, fmt.Sprintf("%s at rest spends %.1f ms of CPU time per second, which is in its figures", name, rest))
		}
	}
	for _, suite := range r.suites() {
		items = append(items, "TLS: "+suite)
	}
	return items
}

// suites returns the protocol and cipher suites that the load was given.
func (r *result) suites() []string {
	var all []string
	for _, row := range r.Rows {
		for _, round := range row.Rounds {
			for _, s := range round {
				if s.TLS != "" && !slices.Contains(all, s.TLS) {
					all = append(all, s.TLS)
				}
			}
		}
	}
	slices.Sort(all)
	return all
}

func orNone(words []string) string {
	if len(words) == 0 {
		return "none"
	}
	return strings.Join(words, " ")
}
