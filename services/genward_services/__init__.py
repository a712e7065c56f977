"""The service: everything is put together here. The doors are `gateway.Gateway`, `app.make_app` and `compose`."""
