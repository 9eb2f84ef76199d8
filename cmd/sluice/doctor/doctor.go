// Package doctor looks at what a node needs of its machine, of etcd, of DNS and
// of its providers, and says of whatever is amiss what it is, what comes of it,
// and which command mends it.
//
// It looks and never changes: beside a live node as before the first start, as
// root or not. What it cannot find out, it says so. All checks run at once, each
// with a deadline, and one that does not keep it is a finding of its own.
package doctor

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/remotegpu/sluice/cmd/sluice/config"
)

// Severity is how bad a finding is.
type Severity string

// The severities, from nothing on.
const (
	OK       Severity = "ok"
	Unknown  Severity = "unknown"  // it could not be found out
	Note     Severity = "note"     // it can be better
	Warning  Severity = "warning"  // it will hurt some day, or hurts a little now
	Critical Severity = "critical" // the node does not start, or does not serve something
)

var order = []Severity{OK, Unknown, Note, Warning, Critical}

// Worse reports whether s is worse than other.
func (s Severity) Worse(other Severity) bool {
	return slices.Index(order, s) > slices.Index(order, other)
}

// Finding is what a check has found.
type Finding struct {
	Check    string   `json:"check"` // such as "etcd"
	Severity Severity `json:"severity"`
	Text     string   `json:"text"`
	// Mend is the command that mends it, or what else does; "" where nothing is
	// to do.
	Mend string `json:"mend,omitempty"`
}

// Subject is what is looked at.
type Subject struct {
	// Path is the node's file.
	Path   string
	Config *config.Config
	// EtcdTLS is for etcd over TLS; EtcdTLSError says why there is none.
	EtcdTLS      *tls.Config
	EtcdTLSError error
	// NTP are time servers, host or host:port; none are asked where it is empty.
	NTP []string
	// Live is the metrics of the node where it runs, "" where it does not.
	Live string
	// Root is where the system's files are looked for: "" but in tests.
	Root string
}

// Check looks at one thing. It must end with ctx.
type Check struct {
	Name string
	Run  func(ctx context.Context, s *Subject, r *Report)
}

// Report gathers the findings of one check. It is safe for concurrent use.
type Report struct {
	check string
	mu    sync.Mutex
	found []Finding
}

func (r *Report) add(s Severity, mend, format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.found = append(r.found, Finding{r.check, s, fmt.Sprintf(format, args...), mend})
}

func (r *Report) ok(format string, args ...any)      { r.add(OK, "", format, args...) }
func (r *Report) unknown(format string, args ...any) { r.add(Unknown, "", format, args...) }

// findings returns what there is so far.
func (r *Report) findings() []Finding {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.found)
}

// PerCheck bounds each check.
const PerCheck = 8 * time.Second

// grace is what a check that does not heed its context is given besides.
const grace = time.Second

// Run makes all checks at once and returns what they have found, the worst first.
// It returns within limit and a second, whatever the checks do.
func Run(ctx context.Context, s *Subject, checks []Check, limit time.Duration) []Finding {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	reports, done := make([]*Report, len(checks)), make([]chan struct{}, len(checks))
	for i, c := range checks {
		reports[i], done[i] = &Report{check: c.Name}, make(chan struct{})
		go func() {
			defer close(done[i])
			c.Run(ctx, s, reports[i])
		}()
	}
	late := time.NewTimer(limit + grace)
	defer late.Stop()
	var all []Finding
	over := false
	for i, c := range checks {
		if !over {
			select {
			case <-done[i]:
			case <-late.C:
				over = true
			}
		}
		select {
		case <-done[i]:
		default:
			reports[i].add(Warning, "", "%s did not end within %v: what it asks neither answers nor refuses", c.Name, limit)
		}
		all = append(all, reports[i].findings()...)
	}
	slices.SortStableFunc(all, func(a, b Finding) int {
		return cmp.Compare(slices.Index(order, b.Severity), slices.Index(order, a.Severity))
	})
	return all
}

// Worst returns the worst severity of findings.
func Worst(all []Finding) Severity {
	worst := OK
	for _, f := range all {
		if f.Severity.Worse(worst) {
			worst = f.Severity
		}
	}
	return worst
}

// metric returns the value of a metric of the live node, by its name with its
// labels as written, and whether it is there.
func (s *Subject) metric(name string) (string, bool) {
	for line := range strings.Lines(s.Live) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strings.TrimSpace(value), true
		}
	}
	return "", false
}

// All are the checks, in the order that people think of them.
func All() []Check {
	return []Check{
		{"config", checkConfig}, {"data", checkData}, {"disk", checkDisk}, {"kernel", checkKernel}, {"sandbox", checkSandbox}, {"limits", checkLimits},
		{"ports", checkPorts}, {"clock", checkClock}, {"resolvers", checkResolvers}, {"providers", checkProviders}, {"names", checkNames}, {"etcd", checkEtcd}, {"certificates", checkCertificates}, {"node", checkNode},
	}
}
