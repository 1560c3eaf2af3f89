package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/settkv/sett/client"
	"github.com/settkv/sett/kv"
)

func (a *app) lsCommand() *cobra.Command {
	var o client.ListOptions
	var limit uint
	var count bool
	cmd := &cobra.Command{
		Use:   "ls [PREFIX]",
		Short: "List keys, one a line, as they are; all of them are of one revision",
		Long: `List the keys that begin with PREFIX, or all, one a line and byte for byte, from one
revision. --output json prints the JSON form of each key with its value, a line each;
--output table shows revision, version and size.`,
		Args: cobra.MaximumNArgs(1),
	}
	conn := a.connectionFlags(cmd)
	reading := readFlags(cmd)
	cmd.Flags().UintVar(&limit, "limit", 0, "list this many at most (default all)")
	cmd.Flags().BoolVar(&o.Reverse, "reverse", false, "from the last key to the first")
	cmd.Flags().StringVar(&o.Delimiter, "delimiter", "", "roll up keys that have this behind PREFIX, such as /")
	cmd.Flags().BoolVar(&count, "count", false, "print only how many keys there are")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var err error
		if o.ReadOptions, err = reading.options(); err != nil {
			return err
		}
		if limit == 0 && cmd.Flags().Changed("limit") {
			return usagef("--limit 0 would list nothing: give a number above it, or leave it out to list all")
		}
		if count && (limit != 0 || o.Delimiter != "") {
			return usagef("--count counts all keys: leave out --limit and --delimiter")
		}
		prefix := ""
		if len(args) > 0 {
			prefix = args[0]
		}
		r := kv.PrefixRange(prefix)
		return conn.stream(cmd, func(ctx context.Context, cl *client.Client) error {
			if count {
				return conn.printCount(ctx, cl, r, o.ReadOptions)
			}
			o.KeysOnly = conn.output != outputJSON && conn.output != outputTable
			return conn.list(ctx, cl, r, listing{ListOptions: o, left: limit})
		})
	}
	return cmd
}

func (c *connection) printCount(ctx context.Context, cl *client.Client, r kv.Range, o kv.ReadOptions) error {
	n, rev, err := cl.Count(ctx, r, o)
	if err != nil {
		return err
	}
	if c.output == outputJSON {
		return printJSON(c.app.out, struct {
			Count    uint64 `json:"count"`
			Revision uint64 `json:"revision"`
		}{n, uint64(rev)})
	}
	_, err = fmt.Fprintln(c.app.out, n)
	return err
}

// listing is what is left of a listing; left 0 is all.
type listing struct {
	client.ListOptions
	left uint
}

// list prints page after page.
func (c *connection) list(ctx context.Context, cl *client.Client, r kv.Range, l listing) error {
	for bounded := l.left > 0; ; {
		if bounded {
			l.Limit = int(min(l.left, kv.MaxRangeLimit))
		}
		page, err := cl.List(ctx, r, l.ListOptions)
		if err != nil {
			return err
		}
		entries := entriesOf(page, l.Reverse)
		if err := c.printEntries(entries); err != nil {
			return err
		}
		l.left -= min(l.left, uint(len(entries)))
		if !page.More || bounded && l.left == 0 {
			return nil
		}
		l.After = page.Next
	}
}

// entriesOf puts keys and common prefixes in one order.
func entriesOf(p client.Page, reverse bool) []kv.ScanEntry {
	list := make([]kv.ScanEntry, 0, len(p.Items)+len(p.CommonPrefixes))
	for _, item := range p.Items {
		list = append(list, kv.ScanEntry{Item: item})
	}
	for _, prefix := range p.CommonPrefixes {
		list = append(list, kv.ScanEntry{CommonPrefix: prefix})
	}
	slices.SortFunc(list, func(a, b kv.ScanEntry) int {
		if reverse {
			a, b = b, a
		}
		return strings.Compare(nameOf(a), nameOf(b))
	})
	return list
}

func nameOf(e kv.ScanEntry) string { return e.Item.Key + e.CommonPrefix }

func (c *connection) printEntries(entries []kv.ScanEntry) error {
	out := c.app.out
	if c.output == outputTable {
		rows := [][]string{{"KEY", "REVISION", "VERSION", "SIZE"}}
		for _, e := range entries {
			row := []string{fmt.Sprintf("%q", nameOf(e)), "", "", ""}
			if e.CommonPrefix == "" {
				row = []string{row[0], fmt.Sprint(e.Item.ModRevision), fmt.Sprint(e.Item.Version), strconv.Itoa(len(e.Item.Value))}
			}
			rows = append(rows, row)
		}
		return printTable(out, c.output, rows)
	}
	for _, e := range entries {
		var err error
		switch {
		case c.output != outputJSON:
			_, err = io.WriteString(out, nameOf(e)+"\n")
		case e.CommonPrefix != "":
			err = printCommonPrefix(out, e.CommonPrefix)
		default:
			err = printForm(out, e.Item)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func printForm(w io.Writer, item kv.Item) error {
	data, err := client.EncodeItem(item)
	if err == nil {
		_, err = w.Write(append(data, '\n'))
	}
	return err
}

func printCommonPrefix(w io.Writer, prefix string) error {
	var line struct {
		Text  string `json:"common_prefix,omitempty"`
		Bytes []byte `json:"common_prefix_base64,omitempty"`
	}
	if line.Text = prefix; !utf8.ValidString(prefix) {
		line.Text, line.Bytes = "", []byte(prefix)
	}
	return printJSON(w, line)
}
