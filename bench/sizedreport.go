package main

import (
	"fmt"
	"slices"
)

// over returns a figure of all starts.
func (r *sizedResult) over(figure func(sizeStart) float64) []float64 {
	var all []float64
	for _, s := range r.Starts {
		all = append(all, figure(s))
	}
	return all
}

func (r *sizedResult) cold() spread {
	return spreadOf(r.over(func(s sizeStart) float64 { return s.Cold }))
}
func (r *sizedResult) warm() spread {
	return spreadOf(r.over(func(s sizeStart) float64 { return s.Warm }))
}

func (r *sizedResult) cpu() spread {
	return spreadOf(r.over(func(s sizeStart) float64 { return s.CPU }))
}

// rss is what the mappings and their listeners take beyond an empty node.
func (r *sizedResult) rss() spread {
	return spreadOf(r.over(func(s sizeStart) float64 { return float64(s.Loaded.RSS - r.Empty.RSS) }))
}

func (r *sizedResult) fds() spread {
	return spreadOf(r.over(func(s sizeStart) float64 { return float64(s.Loaded.FDs - r.Empty.FDs) }))
}

func (r *sizedResult) section() string {
	between := func(s spread, show func(float64) string) string {
		return "(" + show(s.min) + "–" + show(s.max) + ")"
	}
	ms := func(v float64) string { return figure(v) + " ms" }
	sent, returned := percentiles(slices.Clone(r.Sent), 50, 99, 100), percentiles(slices.Clone(r.Returned), 50, 99, 100)
	cells := [][]string{
		{fmt.Sprintf("a node with %d mappings", r.Size), "ports by " + r.Mode, ""},
		{"from the start of the process to ready", ms(r.cold().median), between(r.cold(), ms)},
		{"CPU time until then", ms(r.cpu().median), between(r.cpu(), ms)},
		{"to ready with the last good state on disk", ms(r.warm().median), between(r.warm(), ms)},
		{"memory without mappings", byteSize(float64(r.Empty.RSS)), ""},
		{"memory of mappings and listeners", byteSize(r.rss().median), between(r.rss(), byteSize)},
		{"files of mappings and listeners", figure(r.fds().median), between(r.fds(), figure)},
		{fmt.Sprintf("put returned to first accept, %d puts: p50, p99, longest", len(r.Returned)), ms(returned[0]), ms(returned[1]) + ", " + ms(returned[2])},
		{"put sent to first accept: p50, p99, longest", ms(sent[0]), ms(sent[1]) + ", " + ms(sent[2])},
		{fmt.Sprintf("CPU time of an edit, %d in a row, verdicts written", r.Edits), figure(r.EditCPU) + " µs", figure(r.EditRate) + " edits/s"},
		{"CPU time of an edit among 100 in a transaction", figure(r.BulkCPU) + " µs", ""},
		{"CPU time at rest", figure(r.Rest) + " ms/s", ""},
	}
	return align(cells) + "\netcd is Debian's, in a process of its own, and not counted. An edit adds, changes or deletes one mapping.\n"
}

func (r *sizedResult) bars() []bar {
	name := fmt.Sprintf("%d mappings, %s: ", r.Size, r.Mode)
	cold, rss, p99 := r.cold().median, r.rss().median, percentiles(slices.Clone(r.Returned), 99)[0]
	return []bar{
		{name + "ready", fmt.Sprintf("≤ %d ms", sizedReadyLimit), figure(cold) + " ms", cold <= sizedReadyLimit},
		{name + "memory of mappings and listeners", "≤ " + byteSize(sizedRSSLimit), byteSize(rss), rss <= sizedRSSLimit},
		{name + "p99 from put to first accept", "≤ " + figure(sizedPutLimit) + " ms", figure(p99) + " ms", p99 <= sizedPutLimit},
		{name + "CPU of an edit", "≤ " + figure(sizedEditLimit) + " µs", figure(r.EditCPU) + " µs", r.EditCPU <= sizedEditLimit},
	}
}

func (r *sizedResult) failures() []string { return nil }
