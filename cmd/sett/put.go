package main

import (
	"context"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/settkv/sett/client"
	"github.com/settkv/sett/config"
	"github.com/settkv/sett/kv"
)

func (a *app) putCommand() *cobra.Command {
	var ttl, match string
	var o client.WriteOptions
	cmd := &cobra.Command{
		Use:   "put KEY [VALUE]",
		Short: "Store a value under a key; a missing VALUE is read from standard input",
		Args:  cobra.RangeArgs(1, 2),
	}
	conn := a.connectionFlags(cmd)
	cmd.Flags().StringVar(&ttl, "ttl", "", "end the key after this time, such as 30s (default never)")
	cmd.Flags().StringVar(&o.ContentType, "content-type", "", "media type to store with the value")
	cmd.Flags().StringVar(&match, "if-match", "", "only if the key's revision is this one; * is any")
	cmd.Flags().BoolVar(&o.IfAbsent, "if-absent", false, "only if the key does not exist")
	onceFlag(cmd, &o.IdempotencyKey)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := parseMatch(match, &o); err != nil {
			return err
		}
		if ttl != "" {
			d, err := config.ParseDuration(ttl)
			if err != nil {
				return usagef("bad value %q for --ttl: %w", ttl, err)
			}
			if o.TTL = d; d == 0 {
				return usagef("bad value %q for --ttl: want more than 0", ttl)
			}
		}
		value, err := a.value(args)
		if err != nil {
			return err
		}
		return conn.do(cmd, func(ctx context.Context, cl *client.Client) error {
			r, err := cl.Put(ctx, args[0], value, o)
			if err != nil {
				return err
			}
			verb := "replaced"
			if r.Created {
				verb = "created"
			}
			return conn.printWrite(verb, r)
		})
	}
	return cmd
}

// parseMatch reads the value of --if-match.
func parseMatch(text string, o *client.WriteOptions) error {
	switch text {
	case "":
		return nil
	case "*":
		o.IfExists = true
		return nil
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil || n == 0 {
		return usagef("bad value %q for --if-match: want a revision, such as 12, or *", text)
	}
	o.IfMatch = kv.Revision(n)
	return nil
}
