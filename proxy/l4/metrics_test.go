package l4_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
)

// metric returns the value of a counter or gauge, written as Prometheus writes
// it, or the number of observations of a histogram.
func (n *node) metric(name string) float64 {
	n.t.Helper()
	families, err := n.metrics.Gather()
	if err != nil {
		n.t.Fatal(err)
	}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			full := family.GetName()
			if len(labels) > 0 {
				full += "{" + strings.Join(labels, ",") + "}"
			}
			if full == name {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	n.t.Fatalf("there is no metric %s", name)
	return 0
}

func TestMetrics(t *testing.T) {
	n := newNode(t)
	want := func(name string, value float64) {
		t.Helper()
		if got := n.metric(name); got != value {
			t.Errorf("%s is %v, want %v", name, got, value)
		}
	}
	p := n.tcp(`%s`, newBackend(t, echo).addr)
	c := dial(t, p)
	send(t, c, "hello")
	expect(t, c, "hello")
	want(`sluice_l4_flows_active{proto="tcp"}`, 1)
	for _, direction := range []string{"up", "down"} { // bytes are counted once they are written
		eventually(t, "the bytes of a live flow are counted", func() bool {
			return n.metric(`sluice_l4_bytes_total{direction="`+direction+`",proto="tcp"}`) == 5
		})
	}
	want(`sluice_l4_connect_seconds`, 1)
	c.Close()
	n.wantEnd("client_closed")
	eventually(t, "the flow is counted as ended", func() bool {
		return n.metric(`sluice_l4_flows_total{end="client_closed",proto="tcp"}`) == 1
	})
	want(`sluice_l4_flows_active{proto="tcp"}`, 0)
	want(`sluice_l4_bytes_total{direction="up",proto="tcp"}`, 5)

	u := n.udp(`%s`, udpEcho(t, ""))
	ask(t, dialUDP(t, u), "datagram", "datagram")
	want(`sluice_l4_flows_active{proto="udp"}`, 1)
	u.close()
	want(`sluice_l4_flows_total{end="deleted",proto="udp"}`, 1)
	want(`sluice_l4_bytes_total{direction="up",proto="udp"}`, 8)

	families, err := n.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("promlint: %v, error %v", problems, err)
	}
}
