package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/settkv/sett/client"
	"github.com/settkv/sett/config"
	"github.com/settkv/sett/kv"
)

func (a *app) getCommand() *cobra.Command {
	var o kv.ReadOptions
	var revision, minRevision uint64
	var consistency, maxStaleness string
	cmd := &cobra.Command{
		Use:   "get KEY",
		Short: "Write the value of a key to standard output, its bytes and nothing else",
		Args:  cobra.ExactArgs(1),
	}
	conn := a.connectionFlags(cmd)
	cmd.Flags().Uint64Var(&revision, "revision", 0, "read the key as it was at this revision (default the newest)")
	cmd.Flags().Uint64Var(&minRevision, "min-revision", 0, "wait until the node has reached this revision")
	cmd.Flags().StringVar(&consistency, "consistency", "linearizable", "linearizable, leader or stale")
	cmd.Flags().StringVar(&maxStaleness, "max-staleness", "", "with --consistency stale: refuse a node that may lag more, such as 5s")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var ok bool
		if o.Consistency, ok = kv.ParseConsistency(consistency); !ok {
			return usagef("bad value %q for --consistency: want linearizable, leader or stale", consistency)
		}
		if maxStaleness != "" {
			var err error
			if o.MaxStaleness, err = config.ParseDuration(maxStaleness); err != nil {
				return usagef("bad value %q for --max-staleness: %w", maxStaleness, err)
			}
		}
		o.Revision, o.MinRevision = kv.Revision(revision), kv.Revision(minRevision)
		return conn.do(cmd, func(ctx context.Context, cl *client.Client) error {
			item, _, err := cl.Get(ctx, args[0], o)
			if err != nil {
				return err
			}
			return conn.printItem(item)
		})
	}
	return cmd
}

func (c *connection) printItem(item kv.Item) error {
	switch c.output {
	case outputJSON:
		data, err := client.EncodeItem(item)
		if err == nil {
			_, err = c.app.out.Write(append(data, '\n'))
		}
		return err
	case outputTable:
		expires := "never"
		if !item.ExpiresAt.IsZero() {
			expires = item.ExpiresAt.Format(time.RFC3339Nano)
		}
		return printTable(c.app.out, c.output, [][]string{
			{"KEY", "BYTES", "REVISION", "CREATED AT", "VERSION", "CONTENT TYPE", "EXPIRES", "VALUE"},
			{
				fmt.Sprintf("%q", item.Key), strconv.Itoa(len(item.Value)), fmt.Sprint(item.ModRevision), fmt.Sprint(item.CreateRevision),
				fmt.Sprint(item.Version), item.ContentType, expires, fmt.Sprintf("%q", item.Value),
			},
		})
	}
	_, err := c.app.out.Write(item.Value)
	return err
}
