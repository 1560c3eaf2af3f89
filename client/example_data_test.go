package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/http/httptest"
	"os"
	"time"

	"github.com/settkv/sett/client"
	"github.com/settkv/sett/kv"
)

// library stands in for a cluster: it answers each route with what a small store would.
func library() *httptest.Server {
	say := func(text string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			w.Header().Set("Sett-Revision", "9")
			_, _ = io.WriteString(w, text)
		}
	}
	const (
		a = `{"key":"app/a","value":"1","create_revision":3,"mod_revision":3,"version":1}`
		b = `{"key":"app/b","value":"2","create_revision":4,"mod_revision":9,"version":2}`
	)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/kv", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		switch {
		case q.Get("count_only") == "1":
			say(`{"revision":9,"items":[],"count":2,"more":false}`)(w, r)
		case r.Header.Get("Accept") == "application/x-ndjson":
			say(a+"\n"+b+"\n"+`{"end":true,"count":2,"revision":9}`+"\n")(w, r)
		case q.Get("after") == "":
			say(`{"revision":9,"items":[`+a+`],"count":1,"more":true,"next":"CURSOR"}`)(w, r)
		default:
			say(`{"revision":9,"items":[`+b+`],"count":1,"more":false}`)(w, r)
		}
	})
	mux.HandleFunc("DELETE /v1/kv", say(`{"deleted":2,"revision":10}`))
	mux.HandleFunc("POST /v1/kv", say(`{"applied":2,"revision":11}`))
	mux.HandleFunc("POST /v1/txn", say(`{"succeeded":true,"revision":12,"results":[{"incr":{"value":-5}},{"incr":{"value":5}}]}`))
	mux.HandleFunc("GET /v1/watch", say(`{"type":"put","revision":10,"key":"app/a","value":"3","create_revision":3,"mod_revision":10,"version":2}
{"type":"delete","revision":10,"key":"app/b","mod_revision":10,"last":true}
`))
	mux.HandleFunc("POST /v1/pins", say(`{"id":"p1","revision":9,"expires_at":"2030-01-02T15:04:05Z"}`))
	mux.HandleFunc("DELETE /v1/pins/{id}", say(""))
	mux.HandleFunc("POST /v1/compact", say(`{"compacted_to":9,"held_by":["p1"]}`))
	return httptest.NewServer(mux)
}

// connect is client.New for the examples.
func connect(s *httptest.Server) *client.Client {
	c, err := client.New(client.Config{Endpoints: []string{s.URL}})
	if err != nil {
		panic(err)
	}
	return c
}

func ExampleClient_List() {
	server := library()
	defer server.Close()
	c := connect(server)
	defer c.Close()
	ctx := context.Background()

	// All pages are of one revision, whatever is written meanwhile.
	o := client.ListOptions{Limit: 1}
	for {
		page, err := c.List(ctx, kv.PrefixRange("app/"), o)
		if err != nil {
			fmt.Println(err)
			return
		}
		for _, item := range page.Items {
			fmt.Printf("%s = %s\n", item.Key, item.Value)
		}
		if !page.More {
			break
		}
		o.After = page.Next
	}
	// Output:
	// app/a = 1
	// app/b = 2
}

func ExampleClient_Scan() {
	server := library()
	defer server.Close()
	c := connect(server)
	defer c.Close()
	ctx := context.Background()

	s, err := c.Scan(ctx, kv.PrefixRange("app/"), client.ScanOptions{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer s.Close()
	for s.Next(ctx) {
		fmt.Printf("%s = %s\n", s.Item().Key, s.Item().Value)
	}
	fmt.Println(s.Err(), s.Count(), "keys at revision", s.Revision())
	// Output:
	// app/a = 1
	// app/b = 2
	// <nil> 2 keys at revision 9
}

func ExampleClient_Count() {
	server := library()
	defer server.Close()
	c := connect(server)
	defer c.Close()

	n, revision, err := c.Count(context.Background(), kv.PrefixRange("app/"), kv.ReadOptions{})
	fmt.Println(n, "keys at revision", revision, err)
	// Output: 2 keys at revision 9 <nil>
}

func ExampleClient_DeleteRange() {
	server := library()
	defer server.Close()
	c := connect(server)
	defer c.Close()

	r, err := c.DeleteRange(context.Background(), kv.PrefixRange("app/"), client.DeleteRangeOptions{})
	fmt.Println(r.Deleted, "keys at revision", r.Revision, err)
	// Output: 2 keys at revision 10 <nil>
}

func ExampleClient_Txn() {
	server := library()
	defer server.Close()
	c := connect(server)
	defer c.Close()

	// Move 5 from one account to the other, if there is such an account.
	res, err := c.Txn(context.Background(), kv.Txn{
		If: []kv.Cond{{Key: "account/2", Target: kv.CondExists, Op: kv.CmpEqual, Number: 1}},
		Then: []kv.Op{
			{Kind: kv.OpIncr, Key: "account/1", By: -5},
			{Kind: kv.OpIncr, Key: "account/2", By: 5},
		},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(res.Succeeded, res.Ops[0].Number, res.Ops[1].Number, "at revision", res.Revision)
	// Output: true -5 5 at revision 12
}

func ExampleClient_LoadChanges() {
	server := library()
	defer server.Close()
	c := connect(server)
	defer c.Close()

	var changes iter.Seq2[client.Change, error] = func(yield func(client.Change, error) bool) {
		_ = yield(client.Change{Item: kv.Item{Key: "app/a", Value: []byte("1")}}, nil) &&
			yield(client.Change{Item: kv.Item{Key: "app/b"}, Delete: true}, nil)
	}
	res, err := c.LoadChanges(context.Background(), changes)
	fmt.Println(res.Applied, "lines, the last at revision", res.Revision, err)
	// Output: 2 lines, the last at revision 11 <nil>
}

func ExampleClient_Export() {
	server := library()
	defer server.Close()
	c := connect(server)
	defer c.Close()

	_, err := c.Export(context.Background(), os.Stdout, "app/", kv.ReadOptions{})
	fmt.Println(err)
	// Output:
	// {"begin":true,"revision":9,"prefix":"app/"}
	// {"key":"app/a","value":"1","create_revision":3,"mod_revision":3,"version":1}
	// {"key":"app/b","value":"2","create_revision":4,"mod_revision":9,"version":2}
	// {"end":true,"count":2,"revision":9}
	// <nil>
}

func ExampleClient_Watch() {
	server := library()
	defer server.Close()
	c := connect(server)
	defer c.Close()
	ctx := context.Background()

	w, err := c.Watch(ctx, kv.PrefixRange("app/"), client.WatchOptions{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer w.Close()
	// A batch is one whole revision. Next goes on through failures of nodes.
	batch, err := w.Next(ctx)
	if errors.Is(err, kv.ErrCompacted) {
		fmt.Println("fell behind: read everything, then watch from there")
		return
	}
	for _, e := range batch.Events {
		fmt.Printf("%d %s %s %s\n", e.Revision, e.Type, e.Item.Key, e.Item.Value)
	}
	// Output:
	// 10 put app/a 3
	// 10 delete app/b
}

func ExampleClient_Pin() {
	server := library()
	defer server.Close()
	c := connect(server)
	defer c.Close()
	ctx := context.Background()

	pin, err := c.Pin(ctx, 9, time.Hour, client.OnceOptions{})
	if err != nil {
		fmt.Println(err)
		return
	}
	// What is read at revision 9 stays there for an hour, or until this.
	defer func() { fmt.Println(c.Unpin(ctx, pin.ID, client.OnceOptions{})) }()
	compaction, err := c.Compact(ctx, 20, client.OnceOptions{})
	fmt.Println("compacted to", compaction.To, "held by", compaction.HeldBy, err)
	// Output:
	// compacted to 9 held by [p1] <nil>
	// <nil>
}
