package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/settkv/sett/client"
	"github.com/settkv/sett/kv"
)

func (a *app) delCommand() *cobra.Command {
	var match, prefix string
	var paged bool
	var o client.WriteOptions
	cmd := &cobra.Command{
		Use:   "del KEY | del --prefix P",
		Short: "Delete a key, exit code 3 if there is none; or all keys that begin with a prefix",
		Args:  cobra.MaximumNArgs(1),
	}
	conn := a.connectionFlags(cmd)
	cmd.Flags().StringVar(&match, "if-match", "", "only if the key's revision is this one; * is any")
	cmd.Flags().StringVar(&prefix, "prefix", "", "delete all keys that begin with this, in one transaction")
	cmd.Flags().BoolVar(&paged, "paged", false, fmt.Sprintf("with --prefix: in several transactions, as more than %d keys need", kv.MaxTouchedKeys))
	onceFlag(cmd, &o.IdempotencyKey)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if cmd.Flags().Changed("prefix") {
			switch {
			case len(args) > 0 || match != "":
				return usagef("--prefix goes with neither a KEY nor --if-match")
			case prefix == "":
				return usagef("--prefix is empty, which would be every key; name a prefix")
			}
			return conn.do(cmd, func(ctx context.Context, cl *client.Client) error {
				r, err := cl.DeleteRange(ctx, kv.PrefixRange(prefix), client.DeleteRangeOptions{Paged: paged, IdempotencyKey: o.IdempotencyKey})
				if err != nil {
					return err
				}
				return conn.printDeleted(r)
			})
		}
		if len(args) == 0 || paged {
			return usagef("del takes a KEY, or --prefix P, which --paged goes with")
		}
		if err := parseMatch(match, &o); err != nil {
			return err
		}
		return conn.do(cmd, func(ctx context.Context, cl *client.Client) error {
			r, err := cl.Delete(ctx, args[0], o)
			if err != nil {
				return err
			}
			return conn.printWrite("deleted", r)
		})
	}
	return cmd
}

func (c *connection) printDeleted(r client.DeleteRangeResult) error {
	if c.output == outputJSON {
		return printJSON(c.app.out, struct {
			Revision uint64 `json:"revision"`
			Deleted  uint64 `json:"deleted"`
		}{uint64(r.Revision), r.Deleted})
	}
	if c.output == outputRaw {
		_, err := fmt.Fprintln(c.app.out, r.Revision)
		return err
	}
	_, err := fmt.Fprintf(c.app.out, "deleted %d keys at revision %d\n", r.Deleted, r.Revision)
	return err
}
