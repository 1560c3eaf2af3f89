package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/settkv/sett/client"
	"github.com/settkv/sett/kv"
)

// oneKey stands in for a cluster: it keeps a single key in memory.
func oneKey() *httptest.Server {
	var value []byte
	revision := 0
	return httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodPut && r.Header.Get("If-None-Match") == "*" && revision > 0:
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(http.StatusPreconditionFailed)
			fmt.Fprintf(w, `{"code":"precondition-failed","outcome":"not-applied","detail":"the key exists","current_revision":%d}`, revision)
		case r.Method == http.MethodPut:
			value, _ = io.ReadAll(r.Body)
			revision++
			w.Header().Set("Sett-Revision", fmt.Sprint(revision))
			w.WriteHeader(http.StatusCreated)
		default:
			w.Header().Set("Sett-Revision", fmt.Sprint(revision))
			w.Header().Set("Etag", fmt.Sprintf("%q", fmt.Sprint(revision)))
			w.Header().Set("Sett-Create-Revision", "1")
			w.Header().Set("Sett-Version", "1")
			_, _ = w.Write(value)
		}
	}))
}

func Example() {
	server := oneKey()
	defer server.Close()

	// A real cluster: Endpoints: []string{"http://10.0.0.1:8080", "http://10.0.0.2:8080"}
	c, err := client.New(client.Config{Endpoints: []string{server.URL}})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()

	put, err := c.Put(ctx, "app/greeting", []byte("hello"), client.WriteOptions{IfAbsent: true})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("created:", put.Created, "at revision", put.Revision)

	item, _, err := c.Get(ctx, "app/greeting", kv.ReadOptions{})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("%s = %s\n", item.Key, item.Value)

	// The same again finds the key there: the error is the server's own.
	_, err = c.Put(ctx, "app/greeting", []byte("hello"), client.WriteOptions{IfAbsent: true})
	var e *kv.Error
	if errors.As(err, &e) {
		fmt.Println(errors.Is(err, kv.ErrPreconditionFailed), e.Outcome, e.CurrentRevision)
	}
	// Output:
	// created: true at revision 1
	// app/greeting = hello
	// true not-applied 1
}
