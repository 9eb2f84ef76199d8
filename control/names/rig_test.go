package names_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/remotegpu/sluice/control/names"
	"github.com/remotegpu/sluice/router"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// zone is a provider with one zone in memory, that tells its watcher of each
// state that resolvers could see.
type zone struct {
	name     string
	weighted bool
	bad      string // a name that cannot be read
	least    int
	// fail is asked before each operation.
	fail func(op string) error
	// seen is told of each state, after each single change.
	seen func(records []names.Record)

	mu      sync.Mutex // guards the following
	records []names.Record
	next    int
	log     []string
	reads   int
}

var errRefused = errors.New("the API refuses")

// oneBad is the error of a reading that one name fails.
type oneBad string

func (b oneBad) Error() string { return string(b) + " cannot be read" }
func (b oneBad) Passing() bool { return true }
func (b oneBad) Of(name string) error {
	if name == string(b) {
		return b
	}
	return nil
}

// broken is an API that does not work at all for the moment.
type broken struct{ after time.Duration }

func (broken) Error() string               { return "HTTP 503" }
func (broken) Passing() bool               { return true }
func (b broken) RetryAfter() time.Duration { return b.after }
func (z *zone) Kind() string               { return "memory" }
func (z *zone) Zones() []string            { return []string{z.name} }
func (z *zone) Weighted() bool             { return z.weighted }
func (z *zone) do(op string) error {
	z.mu.Lock()
	fail := z.fail
	z.mu.Unlock()
	if fail == nil {
		return nil
	}
	return fail(op)
}

// failing sets fail.
func (z *zone) failing(fail func(op string) error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.fail = fail
}

func (z *zone) LeastTTL(context.Context, string) (int, error) { return max(z.least, 1), z.do("least") }

func (z *zone) Read(_ context.Context, of string, asked []string) ([]names.Record, error) {
	if err := z.do("read"); err != nil {
		return nil, err
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	z.reads++
	if of != z.name {
		return nil, fmt.Errorf("no zone %s", of)
	}
	var err error
	if bad := slices.DeleteFunc(slices.Clone(asked), func(name string) bool { return name != z.bad }); len(bad) == len(asked) {
		return nil, errRefused
	} else if len(bad) > 0 {
		asked, err = slices.DeleteFunc(slices.Clone(asked), func(name string) bool { return name == z.bad }), oneBad(z.bad)
	}
	return slices.DeleteFunc(slices.Clone(z.records), func(r names.Record) bool { return !slices.Contains(asked, r.Name) }), err
}

func (z *zone) change(op string, r names.Record, do func() error) error {
	if err := z.do(op); err != nil {
		return err
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	if err := do(); err != nil {
		return err
	}
	z.log = append(z.log, fmt.Sprintf("%s %s %s", op, r.Name, r.Data))
	if z.seen != nil {
		z.seen(z.records)
	}
	return nil
}

func (z *zone) Add(_ context.Context, _ string, r names.Record) error {
	return z.change("add", r, func() error {
		if !slices.ContainsFunc(z.records, func(o names.Record) bool { return o.Name == r.Name && o.Type == r.Type && o.Data == r.Data }) {
			z.next++
			r.ID = fmt.Sprint(z.next)
			z.records = append(z.records, r)
		}
		return nil
	})
}

func (z *zone) Update(_ context.Context, _ string, r names.Record) error {
	return z.change("update", r, func() error {
		at := slices.IndexFunc(z.records, func(o names.Record) bool { return o.ID == r.ID })
		if at < 0 {
			return errors.New("no such record")
		}
		z.records[at] = r
		return nil
	})
}

func (z *zone) Remove(_ context.Context, _ string, r names.Record) error {
	return z.change("remove", r, func() error {
		z.records = slices.DeleteFunc(z.records, func(o names.Record) bool { return o.ID == r.ID })
		return nil
	})
}

// byHand changes records as somebody else does.
func (z *zone) byHand(change func([]names.Record) []names.Record) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.records = change(z.records)
	for i := range z.records {
		if z.records[i].ID == "" {
			z.next++
			z.records[i].ID = fmt.Sprint(z.next)
		}
	}
}

// has returns what the records of a name hold.
func (z *zone) has(name string) []string {
	z.mu.Lock()
	defer z.mu.Unlock()
	var all []string
	for _, r := range z.records {
		if r.Name == name {
			all = append(all, r.Data)
		}
	}
	slices.Sort(all)
	return all
}

// swapping is a zone whose records are changed many at a time.
type swapping struct{ *zone }

func (z swapping) Swap(_ context.Context, _ string, swaps []names.Swap) error {
	if err := z.do("swap"); err != nil {
		return err
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	same := func(name string, records []names.Record, typ ...string) bool {
		var here []names.Record
		for _, r := range z.records {
			if r.Name == name && slices.Contains(typ, r.Type) {
				here = append(here, r)
			}
		}
		return len(here) == len(records) && !slices.ContainsFunc(here, func(r names.Record) bool { return !slices.Contains(records, r) })
	}
	for _, s := range swaps {
		if !same(s.Name, s.Before, "A", "AAAA") || !same(s.Marker.Name, s.Found, "TXT") {
			return errors.New("not as it was read")
		}
	}
	for _, s := range swaps {
		z.records = slices.DeleteFunc(z.records, func(r names.Record) bool {
			return r.Name == s.Name && (r.Type == "A" || r.Type == "AAAA") || r.Name == s.Marker.Name
		})
		for _, r := range append(s.After, s.Marker) {
			z.next++
			r.ID = fmt.Sprint(z.next)
			z.records = append(z.records, r)
		}
		z.log = append(z.log, "swap "+s.Name)
	}
	if z.seen != nil {
		z.seen(z.records)
	}
	return nil
}

func spec(t testing.TB, name, value string) *router.PublishedName {
	t.Helper()
	p, err := router.ParsePublishedName(name, []byte(value))
	if err != nil {
		t.Fatal(err)
	}
	p.Rev = 1
	return p
}

func addr(text string) netip.Addr { return netip.MustParseAddr(text) }

func a(name, data string) names.Record {
	typ := "A"
	if strings.Contains(data, ":") {
		typ = "AAAA"
	}
	return names.Record{Name: name, Type: typ, Data: data, TTL: 60}
}
