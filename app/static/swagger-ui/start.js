// Addresses are relative to /docs. Without `validatorUrl: null` Swagger UI may show a badge that an
// outside service draws.
SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null,
});
