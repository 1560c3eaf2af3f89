package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/settkv/sett/client"
)

// printJSON writes v as one line.
func printJSON(w io.Writer, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = w.Write(append(data, '\n'))
	return err
}

// printTable writes rows in columns; the first one is the head. Raw output is the
// rows alone, tabs between cells.
func printTable(w io.Writer, output string, rows [][]string) error {
	if output == outputRaw {
		for _, row := range rows[1:] {
			if _, err := fmt.Fprintln(w, strings.Join(row, "\t")); err != nil {
				return err
			}
		}
		return nil
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		for i, cell := range row {
			if cell == "" {
				row[i] = "-"
			}
		}
		fmt.Fprintln(tw, strings.Join(row, "\t"))
	}
	return tw.Flush()
}

// printWrite writes what became of a write.
func (c *connection) printWrite(verb string, r client.WriteResult) error {
	var err error
	switch c.output {
	case outputJSON:
		err = printJSON(c.app.out, struct {
			Revision uint64 `json:"revision"`
			Created  bool   `json:"created"`
		}{uint64(r.Revision), r.Created})
	case outputRaw:
		_, err = fmt.Fprintln(c.app.out, r.Revision)
	default:
		_, err = fmt.Fprintf(c.app.out, "%s at revision %d\n", verb, r.Revision)
	}
	return err
}
