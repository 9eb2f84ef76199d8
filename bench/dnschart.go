package main

import (
	"bytes"
	"fmt"
)

// The chart's measures, in pixels.
const (
	dnsChartWidth  = 860.0
	dnsChartLeft   = 46.0
	dnsChartTop    = 64.0
	dnsChartHeight = 220.0
	dnsChartFoot   = 40.0
)

// picture is the share of clients' connections that failed, over the run, by the
// name that is kept and by plain round robin, with the faults behind.
func (r *dnsResult) picture() (suffix string, svg []byte) {
	c := &chartWriter{}
	fmt.Fprintf(c, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %[1]g %[2]g" width="%[1]g" height="%[2]g" role="img" font-family="%[3]s" font-size="13" fill="%[4]s">`+"\n",
		dnsChartWidth, dnsChartTop+dnsChartHeight+dnsChartFoot, fontStack, inkColour)
	title := fmt.Sprintf("Share of connections that failed while nodes did, TTL %d s (lower is better)", r.TTL)
	fmt.Fprintf(c, "<title>%s</title>\n", escape(title))
	c.text(0, 18, "start", title, `font-size="15" font-weight="600"`)
	series := []struct {
		name, colour string
		of           connections
	}{{"plain round robin", colourOf(reference), r.Plain}, {"kept by sluice", colourOf(judged), r.Kept}}
	for i, s := range series {
		x := float64(i) * 260
		fmt.Fprintf(c, `<rect x="%g" y="32" width="12" height="12" rx="2" fill="%s"/>`+"\n", x, s.colour)
		c.text(x+18, 43, "start", fmt.Sprintf("%s: %.2f %% in all", s.name, 100*s.of.share()), "")
	}
	length := max(r.Seconds, 1)
	x := func(second float64) float64 { return dnsChartLeft + second/length*(dnsChartWidth-dnsChartLeft) }
	const most = 0.5
	y := func(share float64) float64 { return dnsChartTop + dnsChartHeight*(1-min(share, most)/most) }
	for _, f := range r.Faults {
		fmt.Fprintf(c, `<rect x="%.1f" y="%g" width="%.1f" height="%g" fill="%s" fill-opacity="0.12"><title>%s</title></rect>`+"\n",
			x(f.From), dnsChartTop, x(f.To)-x(f.From), dnsChartHeight, inkColour, escape(fmt.Sprintf("%s of node %d", f.Kind, f.Node)))
	}
	for share := 0.0; share <= most; share += 0.1 {
		fmt.Fprintf(c, `<line x1="%g" x2="%g" y1="%.1f" y2="%.1f" stroke="%s" stroke-opacity="0.35"/>`+"\n", dnsChartLeft, dnsChartWidth, y(share), y(share), inkColour)
		c.text(dnsChartLeft-6, y(share)+4, "end", fmt.Sprintf("%.0f %%", 100*share), `font-size="12"`)
	}
	for _, s := range series {
		var points bytes.Buffer
		for second, share := range s.of.Share {
			fmt.Fprintf(&points, "%.1f,%.1f ", x(float64(second)+0.5), y(share))
		}
		fmt.Fprintf(c, `<polyline points="%s" fill="none" stroke="%s" stroke-width="1.5"/>`+"\n", bytes.TrimSpace(points.Bytes()), s.colour)
	}
	r.nameFaults(c, x)
	c.WriteString("</svg>\n")
	return "-dns", c.Bytes()
}

// nameFaults writes the kind of faults below those of one kind in a row, and the
// time at both ends.
func (r *dnsResult) nameFaults(c *chartWriter, x func(float64) float64) {
	foot := dnsChartTop + dnsChartHeight
	for i := 0; i < len(r.Faults); {
		n := i
		for n < len(r.Faults) && r.Faults[n].Kind == r.Faults[i].Kind {
			n++
		}
		c.text((x(r.Faults[i].From)+x(r.Faults[n-1].To))/2, foot+18, "middle", r.Faults[i].Kind, `font-size="12"`)
		i = n
	}
	c.text(dnsChartWidth, foot+34, "end", fmt.Sprintf("%.0f s", r.Seconds), `font-size="12"`)
	c.text(dnsChartLeft, foot+34, "start", "0 s", `font-size="12"`)
}
