package main

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"math"
)

// The chart's colours have nearly the same contrast to white as to black, so
// that it can be read on a page of either; it paints no background.
const (
	inkColour = "#757575"
	fontStack = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"
)

// barColours are the contenders'; others take those at the end in turn.
func barColours() map[string]string {
	return map[string]string{"nginx": "#808080", "haproxy": "#3d7fd6", "sluice": "#c9640f", "caddy": "#2e8b57", nginxH3Name: "#9a62c7"}
}

// The chart's measures, in pixels.
const (
	chartWidth  = 860
	chartTop    = 64 // above the first group
	labelWidth  = 290
	valueWidth  = 150 // right of the longest bar
	barHeight   = 15
	barGap      = 3
	groupGap    = 18
	chartBottom = 34
)

// chart draws the rows' ratios as an SVG picture: a group of bars for each row,
// a bar for each contender as long as the median, with a whisker from the least
// to the greatest. Lower is better.
func chart(r *result) []byte {
	c := &chartWriter{contenders: r.Contenders, reference: r.referenceName()}
	var groups [][]line
	longest := 1.0
	height := float64(chartTop)
	for _, row := range r.Rows {
		lines := row.lines(r.Contenders, r.referenceOf(row))
		groups = append(groups, lines)
		for _, l := range lines {
			if !math.IsNaN(l.ratio.max) {
				longest = max(longest, l.ratio.max)
			}
		}
		height += groupHeight(lines)
	}
	c.scale = (chartWidth - labelWidth - valueWidth) / longest
	c.open(height + chartBottom)
	c.axis(height, longest)
	y := float64(chartTop)
	for i, lines := range groups {
		title := r.Rows[i].Title
		if to := r.referenceOf(r.Rows[i]); to != c.reference {
			title += ", to " + to
		}
		c.group(y, title, lines)
		y += groupHeight(lines)
	}
	c.WriteString("</svg>\n")
	return c.Bytes()
}

func groupHeight(lines []line) float64 {
	return float64(max(len(lines), 1)*(barHeight+barGap) + groupGap)
}

// chartWriter writes the parts of a chart.
type chartWriter struct {
	bytes.Buffer
	contenders []string
	reference  string
	scale      float64 // pixels for a ratio of 1
}

// x is where a ratio is.
func (c *chartWriter) x(ratio float64) float64 { return labelWidth + ratio*c.scale }

func (c *chartWriter) open(height float64) {
	fmt.Fprintf(c, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %.0f" width="%d" height="%.0f" role="img" font-family="%s" font-size="13" fill="%s">`+"\n",
		chartWidth, height, chartWidth, height, fontStack, inkColour)
	title := "CPU time per unit of work, as a ratio to " + c.reference + " (lower is better)"
	fmt.Fprintf(c, "<title>%s</title>\n", escape(title))
	c.text(0, 18, "start", title, `font-size="15" font-weight="600"`)
	x := 0.0
	for _, name := range c.contenders {
		fmt.Fprintf(c, `<rect x="%.1f" y="32" width="12" height="12" rx="2" fill="%s"/>`+"\n", x, colourOf(name))
		c.text(x+18, 43, "start", name, "")
		x += 40 + 8*float64(len(name))
	}
}

// axis draws a line at each half, the one at 1 strongly.
func (c *chartWriter) axis(bottom, longest float64) {
	step := 0.5
	for longest/step > 8 {
		step *= 2
	}
	for v := 0.0; v <= longest+1e-9; v += step {
		style := `stroke-opacity="0.35"`
		if v == 1 {
			style = `stroke-width="1.5" stroke-dasharray="4 3"`
		}
		fmt.Fprintf(c, `<line x1="%.1f" x2="%.1f" y1="%d" y2="%.1f" stroke="%s" %s/>`+"\n", c.x(v), c.x(v), chartTop-8, bottom-groupGap/2, inkColour, style)
		c.text(c.x(v), bottom+groupGap/2, "middle", fmt.Sprintf("%g×", v), `font-size="12"`)
	}
}

// group draws a row's bars from y on.
func (c *chartWriter) group(y float64, title string, lines []line) {
	middle := y + (groupHeight(lines)-groupGap)/2
	c.text(labelWidth-12, middle+4, "end", title, "")
	for _, l := range lines {
		if math.IsNaN(l.ratio.median) {
			c.text(c.x(0)+6, y+barHeight-3, "start", l.contender+": no ratio", `font-size="12"`)
		} else {
			c.bar(y, l)
		}
		y += barHeight + barGap
	}
}

func (c *chartWriter) bar(y float64, l line) {
	fmt.Fprintf(c, `<rect x="%.1f" y="%.1f" width="%.1f" height="%d" rx="2" fill="%s"><title>%s</title></rect>`+"\n",
		c.x(0), y, l.ratio.median*c.scale, barHeight, colourOf(l.contender),
		escape(l.contender+": "+ratioText(l.ratio)))
	mid := y + barHeight/2.0
	if l.ratio.max > l.ratio.min {
		fmt.Fprintf(c, `<path d="M%.1f %.1fH%.1fM%.1f %.1fv6M%.1f %.1fv6" stroke="%s" fill="none"/>`+"\n",
			c.x(l.ratio.min), mid, c.x(l.ratio.max), c.x(l.ratio.min), mid-3, c.x(l.ratio.max), mid-3, inkColour)
	}
	c.text(chartWidth-valueWidth+16, y+barHeight-3, "start", ratioText(l.ratio), `font-size="12"`)
}

// ratioText is the median with the least and the greatest where they differ.
func ratioText(r spread) string {
	if r.min == r.max {
		return times(r.median)
	}
	return fmt.Sprintf("%s (%.2f–%.2f)", times(r.median), r.min, r.max)
}

func (c *chartWriter) text(x, y float64, anchor, s, style string) {
	if style != "" {
		style = " " + style
	}
	fmt.Fprintf(c, `<text x="%.1f" y="%.1f" text-anchor="%s"%s>%s</text>`+"\n", x, y, anchor, style, escape(s))
}

func colourOf(contender string) string {
	if colour, ok := barColours()[contender]; ok {
		return colour
	}
	return "#a0722d"
}

func escape(s string) string {
	var b bytes.Buffer
	xml.EscapeText(&b, []byte(s)) // to memory: cannot fail
	return b.String()
}
