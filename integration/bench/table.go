package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"unicode/utf8"
)

// A table is printed as Markdown, in columns that line up.
type table struct {
	title string
	rows  [][]string // the first is the header
}

func newTable(title string, header ...string) *table { return &table{title, [][]string{header}} }

// add adds a row; numbers are printed with three significant digits.
func (t *table) add(cells ...any) {
	row := make([]string, len(cells))
	for i, c := range cells {
		if v, ok := c.(float64); ok {
			row[i] = number(v)
		} else {
			row[i] = fmt.Sprint(c)
		}
	}
	t.rows = append(t.rows, row)
}

func (t *table) print(out io.Writer) {
	widths := make([]int, len(t.rows[0]))
	for _, row := range t.rows {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	if t.title != "" {
		fmt.Fprintf(out, "%s:\n\n", t.title)
	}
	for i, row := range t.rows {
		for j, cell := range row {
			fmt.Fprintf(out, "| %s%s ", cell, strings.Repeat(" ", widths[j]-utf8.RuneCountInString(cell)))
		}
		fmt.Fprintln(out, "|")
		if i == 0 {
			for _, width := range widths {
				fmt.Fprint(out, "|", strings.Repeat("-", width+2))
			}
			fmt.Fprintln(out, "|")
		}
	}
	fmt.Fprintln(out)
}

func number(v float64) string {
	switch {
	case math.IsNaN(v):
		return "NaN"
	case v == 0:
		return "0"
	case math.Abs(v) >= 100:
		return fmt.Sprintf("%.0f", v)
	}
	digits := 2 - int(math.Floor(math.Log10(math.Abs(v))))
	return fmt.Sprintf("%.*f", digits, v)
}

// median is not a number if one of the values is none.
func median(v []float64) float64 {
	if len(v) == 0 || slices.ContainsFunc(v, math.IsNaN) {
		return math.NaN()
	}
	return slices.Sorted(slices.Values(v))[len(v)/2]
}

// results are the values of every run, by row and system.
type results map[string]map[string][]float64

func (r results) add(row, system string, v float64) {
	if r[row] == nil {
		r[row] = make(map[string][]float64)
	}
	r[row][system] = append(r[row][system], v)
}

// table has a column for each system.
func (r results) table(title string, rows []row, systems []system) *table {
	header := []string{"row", "unit"}
	for _, s := range systems {
		header = append(header, s.name)
	}
	t := newTable(title, header...)
	for _, w := range rows {
		cells := []any{w.name, w.unit}
		for _, s := range systems {
			cells = append(cells, median(r[w.name][s.name]))
		}
		t.add(cells...)
	}
	return t
}

// ratios says how much faster ours is than each peer; the last row is the geometric mean of those that there are.
func (r results) ratios(rows []row, ours system, peers []system) *table {
	header := []string{ours.name + ", times as fast as"}
	for _, p := range peers {
		header = append(header, p.name)
	}
	t := newTable("", header...)
	logs, counted := make([]float64, len(peers)), make([]float64, len(peers))
	for _, w := range rows {
		cells := []any{w.name}
		for i, p := range peers {
			ratio := median(r[w.name][ours.name]) / median(r[w.name][p.name])
			if w.unit == "s" {
				ratio = 1 / ratio
			}
			if !math.IsNaN(ratio) {
				logs[i] += math.Log(ratio)
				counted[i]++
			}
			cells = append(cells, ratio)
		}
		t.add(cells...)
	}
	mean := []any{"**geometric mean**"}
	for i := range peers {
		mean = append(mean, math.Exp(logs[i]/counted[i]))
	}
	t.add(mean...)
	return t
}
